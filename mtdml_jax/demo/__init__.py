"""The demo page: a picture in, expressions out."""
