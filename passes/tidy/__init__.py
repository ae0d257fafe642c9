"""What any graph wants first: constants folded, no-ops removed, batch norms as a multiplication and an addition."""
