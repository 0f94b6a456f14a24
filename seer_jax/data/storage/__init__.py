"""What sources read through: files, indexes of them, records in them."""
