"""Joins to other libraries, one file each; none imports its library before the app does."""
