"""The demo: a small support assistant under real traffic with known trouble in it, measured by costspan on one machine."""
