"""`nvmuser completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands and options in SHELL.

    \b
    Examples:
      eval "$(nvmuser completion bash)"                  # in ~/.bashrc
      eval "$(nvmuser completion zsh)"                   # in ~/.zshrc
      nvmuser completion fish > ~/.config/fish/completions/nvmuser.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "nvmuser", "_NVMUSER_COMPLETE").source())
