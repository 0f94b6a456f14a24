"""The loop, its step, and what watches over them."""
