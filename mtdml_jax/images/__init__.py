"""Reads image files, folders of images and lists of images, without TensorFlow."""
