"""`report.html`: what a run did, in words and pictures."""
