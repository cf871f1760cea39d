"""Image formats with a decoder of their own, beside Pillow."""
