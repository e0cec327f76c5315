"""The synthetic caller: speaks a WAV into any server of Moshi's protocol and measures the line."""
