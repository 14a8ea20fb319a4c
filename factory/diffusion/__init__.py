"""Parts that the diffusion systems share: networks, conditioning, schedules, losses."""
