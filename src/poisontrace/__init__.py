"""Trace one misclassification of a network back to the poisoned training samples behind it."""
