"""A local store that was moved with its project: MLflow keeps absolute paths, which are made to point where it is."""

from pathlib import Path
from urllib.parse import unquote, urlparse

from sqlalchemy import create_engine, inspect, text

from search.tracking.store import SQLITE

COLUMNS = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("model_versions", "storage_location"))


def follow_moved(uri: str, artifacts: Path) -> int:
    """Point a local database at its artifacts' folder where that was moved: the old one is gone, this one is there.

    Args:
        uri: of the database.
        artifacts: the folder as the settings name it.

    Returns:
        How many paths were changed.
    """
    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or not path.exists() or not artifacts.is_dir():
        return 0
    here, changed = artifacts.absolute().as_uri(), 0
    engine = create_engine(uri)
    tables = inspect(engine).get_table_names()
    if "experiments" not in tables:
        return 0
    with engine.begin() as connection:
        found = connection.execute(text("SELECT DISTINCT artifact_location FROM experiments")).scalars().all()
        for old in found:
            if old == here or not _is_gone(old) or Path(unquote(urlparse(old).path)).name != artifacts.name:
                continue
            for table, column in COLUMNS:
                moved = f"UPDATE {table} SET {column} = :here || substr({column}, length(:old) + 1) "
                where = f"WHERE {column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/'"
                if table in tables:
                    changed += connection.execute(text(moved + where), {"here": here, "old": old}).rowcount
    return changed


def _is_gone(location: str) -> bool:
    return location.startswith("file:") and not Path(unquote(urlparse(location).path)).exists()
