"""The demo page: a web page that classifies the faces in a visitor's picture."""
