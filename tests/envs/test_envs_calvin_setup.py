"""`rdvla setup calvin` from a server of our own; and data files that are missing or not as published."""

import functools
import http.client
import http.server
import json
import shutil
import threading

import pytest
from typer.testing import CliRunner

from calvin_files import ASSETS, needs_files
from rdvla.cli.main import app
from rdvla.envs.calvin import assets
from rdvla.envs.calvin.assets import find_data, load_scene, manifest, missing_files, revision
from rdvla.envs.calvin.download import default_source, download
from rdvla.errors import ConfigError


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder, limit=None):
        self.asked, self.answered, self.limit = [], [], limit
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.server.limit is not None and len(self.server.asked) > self.server.limit:
            self.send_error(503)
        else:
            self.server.answered.append(self.path)
            super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(*arguments, **options):
        servers.append(Server(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def run(*arguments):
    return CliRunner().invoke(app, ["setup", "calvin", *map(str, arguments)])


@needs_files
class TestSetup:
    def test_fetches_verifies_and_is_enough(self, serve, tmp_path):
        server = serve(ASSETS)
        result = run("--calvin-data", tmp_path / "here", "--source", server.address)
        assert result.exit_code == 0, result.output
        assert f"export RDVLA_CALVIN_DATA={tmp_path / 'here'}" in result.output
        assert len(server.asked) == len(manifest().files)
        assert missing_files(tmp_path / "here") == []
        assert revision(tmp_path / "here") == manifest().revision
        for scene in "ABCD":
            assert len(load_scene(scene, tmp_path / "here").blocks) == 3

    def test_a_variable_that_names_another_folder_is_told(self, serve, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("RDVLA_CALVIN_DATA", "/elsewhere")
        output = run("--source", serve(ASSETS).address).output
        assert missing_files(tmp_path / "rdvla" / "calvin") == []
        assert "Other commands look in '/elsewhere', as RDVLA_CALVIN_DATA says" in output

    def test_continues_and_mends(self, serve, tmp_path):
        broken = serve(ASSETS, limit=40)
        with pytest.raises(ConfigError, match=r"could not be fetched .* Repeat the command"):
            download(tmp_path, source=broken.address, on_file=lambda _: None)
        arrived = set(manifest().files) - set(missing_files(tmp_path))
        assert len(arrived) == len(broken.answered) > 0  # whatever was answered is kept
        damaged = next(iter(sorted(arrived)))
        (tmp_path / damaged).write_bytes(b"something else")
        server = serve(ASSETS)
        told = []
        download(tmp_path, source=server.address, on_file=told.append)
        assert set(told) == {path.lstrip("/") for path in server.asked} == set(manifest().files) - arrived | {damaged}
        assert missing_files(tmp_path) == []

    def test_a_file_that_is_not_the_published_one_is_not_kept(self, serve, tmp_path):
        for path in manifest().files:
            (tmp_path / "other" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ASSETS / path, tmp_path / "other" / path)
        (tmp_path / "other/conf/robot/panda.yaml").write_text("max_velocity: 3\n", encoding="utf-8")
        with pytest.raises(ConfigError, match=r"panda\.yaml' is not the published file"):
            download(tmp_path / "here", source=serve(tmp_path / "other").address, on_file=lambda _: None)
        assert not (tmp_path / "here/conf/robot/panda.yaml").exists()
        assert revision(tmp_path / "other") == "changed: conf/robot/panda.yaml"


@needs_files
def test_the_two_folders_that_are_to_be_copied_are_enough(tmp_path):
    for name in ("conf", "data"):
        shutil.copytree(ASSETS / name, tmp_path / name)
    assert revision(tmp_path) == manifest().revision


def test_a_server_that_speaks_something_else(tmp_path, monkeypatch):
    def garbage(*_, **__):
        raise http.client.BadStatusLine("garbage")

    monkeypatch.setattr("urllib.request.urlopen", garbage)
    with pytest.raises(ConfigError, match=r"could not be fetched \(garbage\).*Without internet"):
        download(tmp_path, source="http://127.0.0.1:1", on_file=lambda _: None)


def test_without_internet_it_is_said_what_to_do(tmp_path):
    result = run("--calvin-data", tmp_path, "--source", "http://127.0.0.1:1")
    assert isinstance(result.exception, ConfigError)
    for part in ("git clone https://github.com/mees/calvin_env", "git checkout 797142c", "--calvin-data"):
        assert part in str(result.exception)


def test_the_default_source_is_the_pinned_revision():
    assert default_source().endswith(f"/mees/calvin_env/{manifest().revision}")


@pytest.fixture
def copy(tmp_path):
    if ASSETS is None:
        pytest.skip("CALVIN's data files are not on this machine")
    for path in manifest().files:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ASSETS / path, tmp_path / path)
    return tmp_path


class TestDataFiles:
    def test_a_folder_around_the_checkout_will_do(self, copy, tmp_path_factory):
        outer = tmp_path_factory.mktemp("outer")
        (outer / "calvin_env").symlink_to(copy)
        assert find_data(outer) == outer / "calvin_env"

    def test_the_environment_variable_else_the_cache(self, copy, monkeypatch):
        monkeypatch.setenv("RDVLA_CALVIN_DATA", str(copy))
        assert find_data() == copy
        monkeypatch.delenv("RDVLA_CALVIN_DATA")
        monkeypatch.setattr(assets, "default_folder", lambda: copy / "nowhere")
        with pytest.raises(ConfigError, match=r"nowhere'.*rdvla setup calvin"):
            find_data()

    def test_an_unknown_scene(self):
        with pytest.raises(ConfigError, match="scene = 'E'"):
            load_scene("E")

    @pytest.mark.parametrize(
        ("path", "content", "message"),
        [
            ("conf/scene/calvin_scene_D.yaml", None, "incomplete: no '.*calvin_scene_D.yaml'"),
            ("conf/scene/calvin_scene_D.yaml", "a: [", "cannot be read"),
            ("conf/scene/calvin_scene_D.yaml", "[]", "is not a mapping"),
            ("conf/scene/calvin_scene_D.yaml", "objects: {}", "is not as expected .KeyError"),
            ("conf/cameras/cameras/static.yaml", "fov: wide", "is not as expected"),
            ("data/plane/plane.urdf", None, "incomplete: no '.*plane.urdf'"),
            ("data/calvin_table_D/textures/dark_wood__gray_handle.png", None, "incomplete: no '.*gray_handle.png'"),
            ("data/blocks/block_red_middle.urdf", "version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ],
    )
    def test_damage(self, copy, path, content, message):
        (copy / path).unlink()
        if content is not None:
            (copy / path).write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            load_scene("D", copy)

    def test_another_scenes_files_are_not_needed(self, copy):
        shutil.rmtree(copy / "data/calvin_table_A")
        (copy / "conf/scene/calvin_scene_A.yaml").unlink()
        load_scene("D", copy)
        with pytest.raises(ConfigError, match="incomplete"):
            load_scene("A", copy)

    def test_files_that_are_not_as_published_are_told(self, copy, caplog):
        picture = copy / "data/calvin_table_D/textures/dark_wood__gray_handle.png"
        picture.write_bytes(picture.read_bytes() + b" ")
        load_scene("D", copy)
        assert "dark_wood__gray_handle.png in" in caplog.text
        assert "not as published" in caplog.text
        caplog.clear()
        load_scene("C", copy)
        assert not caplog.text


@needs_files
def test_the_manifest_is_what_models_and_configuration_name():
    """Scenes and models name files, which name files; nothing more is fetched, but the licences."""
    import re

    named, left = set(), [ASSETS / path for path in manifest().files if path.startswith("conf/")]
    left += [ASSETS / "data/plane/plane.urdf"]
    patterns = {
        ".yaml": r"file(?:name)?: (\S+\.urdf)",
        ".urdf": r'filename="(?:package://)?([^"]+)"',
        ".obj": r"(?m)^mtllib (\S+)",
        ".mtl": r"(?m)^\s*map_Kd (\S+)",
    }
    while left:
        path = left.pop().resolve()
        if path.name == "panda.urdf":  # named by a robot that no scene takes
            continue
        found = re.findall(patterns.get(path.suffix, "(?!)"), path.read_text(encoding="utf-8", errors="replace"))
        folder = ASSETS / "data" if path.suffix == ".yaml" else path.parent
        named.add(path)
        left += [each for each in ((folder / name).resolve() for name in found) if each.is_file() and each not in named]
    short = {str(path.relative_to(ASSETS.resolve())) for path in named}
    assert short | {"LICENSE", "data/franka_panda/LICENSE.txt"} == set(manifest().files)


def test_the_manifest_is_sorted_json():
    from importlib import resources

    text = resources.files("rdvla.envs.calvin").joinpath("manifest.json").read_text(encoding="utf-8")
    assert list(json.loads(text)["files"]) == sorted(manifest().files)
