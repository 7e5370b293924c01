"""What a sandbox has changed: the upper directory compared with what lies below it."""
