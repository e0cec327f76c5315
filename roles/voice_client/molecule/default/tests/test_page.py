"""What the role `voice_client` leaves on a host."""

import gzip
import json
import re

import pytest

PAGE = "/opt/hotline/page"


def files(host):
    return host.check_output("find %s -type f", PAGE).splitlines()


def test_everything_the_page_refers_to_is_there(host):
    index = host.file(f"{PAGE}/index.html").content_string
    references = re.findall(r'(?:src|href)="(/[^"]+)"', index)
    assert len(references) >= 3
    for reference in references:
        assert host.file(PAGE + reference).is_file, reference


def test_the_page_asks_nobody_else_for_anything(host):
    """No address of another host in a tag, a style or a script that loads something."""
    index = host.file(f"{PAGE}/index.html").content_string
    assert not re.search(r'(?:src|href)="(?:https?:)?//', index)
    assert "<style" not in index
    assert not re.search(r"<script(?![^>]*\bsrc=)", index)


def test_names_in_assets_carry_a_hash(host):
    """nginx lets browsers keep them for a year."""
    names = [path for path in files(host) if "/assets/" in path]
    assert len(names) >= 8
    for name in names:
        assert re.search(r"-[\w-]{8,10}[./]", name.removeprefix(f"{PAGE}/assets/")), name


def test_the_large_files_lie_there_compressed(host):
    """All but pictures, which are compressed by their format."""
    large = [
        path for path in files(host) if not path.endswith((".gz", ".png")) and host.file(path).size > 2048
    ]
    assert len(large) >= 5
    for path in large:
        assert gzip.decompress(host.file(f"{path}.gz").content) == host.file(path).content, path


def test_the_page_is_roots_and_everybody_may_read_it(host):
    for path in host.check_output("find %s", PAGE).splitlines():
        file = host.file(path)
        mode = 0o755 if file.is_directory else 0o644
        assert (file.user, file.group, file.mode) == ("root", "root", mode), path


def test_the_page_knows_its_line(host):
    line = json.loads(host.file(f"{PAGE}/line.json").content_string)
    assert line["authority"] == "/hotline-ca.pem"
    assert line["version"]


@pytest.mark.parametrize("name", ["node", "npm"])
def test_node_stays_on_the_controller(host, name):
    assert not host.exists(name)
