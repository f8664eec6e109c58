"""Whole-slide images: opening, resolution, pyramid levels, and tiles by OpenSlide or straight from their JPEG data."""
