"""torch modules that training and export share."""
