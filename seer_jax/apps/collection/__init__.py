"""What is done with embedded pictures: searched, sorted, labelled."""
