"""What the tests of one session share."""
