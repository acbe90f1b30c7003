"""The engine of `besteffort.opt` behind OpenAI's API: `besteffort engine`."""
