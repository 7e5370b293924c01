"""What the terminal, reports and files say about what tests have changed."""
