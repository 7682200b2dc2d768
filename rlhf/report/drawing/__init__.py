"""Curves as geometry: axes, series, charts."""
