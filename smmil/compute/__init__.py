"""The device a job runs on: its choice, its numerical settings, and what happens when its memory is full."""
