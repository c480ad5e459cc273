"""What an image file, a folder of images and a list of them are; no TensorFlow."""
