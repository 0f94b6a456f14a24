"""A collection of pictures: embedded once, then searched, sorted, labelled."""
