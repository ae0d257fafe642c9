"""From a packed model to an FPGA: hardware stages, folding, simulation, the link to a board, boards and their builds."""
