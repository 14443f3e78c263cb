"""The `rdvla` command: one file per subcommand; heavy imports happen inside the functions."""

import sys

import typer

from rdvla.cli.bench import bench_app
from rdvla.cli.calibrate import calibrate_command
from rdvla.cli.collect import collect
from rdvla.cli.convert import convert_command
from rdvla.cli.dataset import dataset_app
from rdvla.cli.demo import demo_command
from rdvla.cli.doctor import doctor_command
from rdvla.cli.eval import eval_command
from rdvla.cli.play import play_command
from rdvla.cli.push import push_command, push_dataset_command
from rdvla.cli.report import report_command
from rdvla.cli.results import results_command
from rdvla.cli.serve import serve_command
from rdvla.cli.setup import setup_app
from rdvla.cli.train import train_command
from rdvla.errors import RDVLAError

app = typer.Typer(
    name="rdvla",
    help="Vision-language-action policies that decide how long to think.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help texts say [default: ...] in plain brackets
)
app.command(
    "train",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(train_command)
app.command("demo")(demo_command)
app.command("collect")(collect)
app.add_typer(dataset_app, name="dataset")
app.command("eval")(eval_command)
app.command("report")(report_command)
app.command("results")(results_command)
app.command("calibrate")(calibrate_command)
app.command("serve")(serve_command)
app.command("play")(play_command)
app.command("convert")(convert_command)
app.command("push")(push_command)
dataset_app.command("push")(push_dataset_command)
app.command("doctor")(doctor_command)
app.add_typer(setup_app, name="setup")
app.add_typer(bench_app, name="bench")


def main() -> None:
    """Run the command line; a user's mistake ends with one message and exit code 2, without a traceback."""
    try:
        app()
    except RDVLAError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
