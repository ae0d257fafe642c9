# Builds xnorc.bit and xnorc.hwh for a PYNQ-Z2:  vivado -mode batch -source build.tcl
# The board's own boot image sets up the processing system (DDR, pins); this design only uses its ports.
set part xc7z020clg400-1
set clock_mhz @CLOCK_MHZ@
set here [file dirname [file normalize [info script]]]

create_project -force xnorc $here/vivado -part $part
add_files -norecurse $here/xnorc_axi.v
update_compile_order -fileset sources_1
create_bd_design design

# The processing system: a master port for registers, a high-performance slave port for the DMA.
set ps [create_bd_cell -type ip -vlnv xilinx.com:ip:processing_system7 ps]
set_property -dict [list \
    CONFIG.PCW_FPGA0_PERIPHERAL_FREQMHZ $clock_mhz \
    CONFIG.PCW_USE_M_AXI_GP0 1 \
    CONFIG.PCW_USE_S_AXI_HP0 1 \
    CONFIG.PCW_S_AXI_HP0_DATA_WIDTH 64 \
] $ps
make_bd_intf_pins_external [get_bd_intf_pins ps/DDR] [get_bd_intf_pins ps/FIXED_IO]

# Memory to stream and back, simple transfers of up to 2^26 bytes.
set dma [create_bd_cell -type ip -vlnv xilinx.com:ip:axi_dma dma]
set_property -dict [list \
    CONFIG.c_include_sg 0 \
    CONFIG.c_sg_length_width 26 \
    CONFIG.c_m_axi_mm2s_data_width 64 \
    CONFIG.c_m_axis_mm2s_tdata_width 64 \
    CONFIG.c_m_axi_s2mm_data_width 64 \
    CONFIG.c_s_axis_s2mm_tdata_width 64 \
] $dma

set core [create_bd_cell -type module -reference xnorc_axi core]
connect_bd_intf_net [get_bd_intf_pins dma/M_AXIS_MM2S] [get_bd_intf_pins core/s_axis]
connect_bd_intf_net [get_bd_intf_pins core/m_axis] [get_bd_intf_pins dma/S_AXIS_S2MM]

# Interconnects, clocks and resets.
foreach slave {dma/S_AXI_LITE core/s_axi} {
    apply_bd_automation -rule xilinx.com:bd_rule:axi4 -config [list Master "/ps/M_AXI_GP0" Clk "Auto"] \
        [get_bd_intf_pins $slave]
}
foreach master {dma/M_AXI_MM2S dma/M_AXI_S2MM} {
    apply_bd_automation -rule xilinx.com:bd_rule:axi4 -config [list Master "/$master" Slave "/ps/S_AXI_HP0" Clk "Auto"] \
        [get_bd_intf_pins ps/S_AXI_HP0]
}
assign_bd_address
validate_bd_design
save_bd_design

set wrapper [make_wrapper -files [get_files design.bd] -top]
add_files -norecurse $wrapper
set_property top design_wrapper [current_fileset]
update_compile_order -fileset sources_1
launch_runs impl_1 -to_step write_bitstream -jobs 2
wait_on_run impl_1
if {[get_property PROGRESS [get_runs impl_1]] != "100%"} {
    error "the implementation failed: see $here/vivado/xnorc.runs/impl_1/runme.log"
}
open_run impl_1
report_utilization -file $here/utilization.txt
report_timing_summary -file $here/timing.txt
file copy -force [lindex [glob $here/vivado/xnorc.runs/impl_1/*.bit] 0] $here/xnorc.bit
file copy -force [lindex [glob $here/vivado/xnorc.gen/sources_1/bd/design/hw_handoff/design.hwh] 0] $here/xnorc.hwh
