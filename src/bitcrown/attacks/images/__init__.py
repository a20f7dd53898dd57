"""Attacks on classifiers of images, as suites: each sees what the ones before left.

Works on any torch function from pixels to logits; knows no file and no property.
"""
