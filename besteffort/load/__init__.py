"""Plays lists of requests to servers with OpenAI's API, in real time, and measures what comes back."""
