"""The subcommands of `controlnet`, one module each: `add_arguments(parser)` and `run(args) -> int`."""
