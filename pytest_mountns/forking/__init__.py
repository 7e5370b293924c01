"""What fork(2) breaks, and the channel between a test process and the pytest process."""
