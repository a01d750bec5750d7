"""What the controller and one host say to each other, and what it means when they cannot."""
