"""What is learned: views, a loss, the state it changes."""
