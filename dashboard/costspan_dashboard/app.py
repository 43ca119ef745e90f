"""The page that Streamlit runs, from the top on every change: choose a project and a window, then the sections."""

from __future__ import annotations

from html import escape

import streamlit as st

from costspan_analytics.errors import AnalyticsError
from costspan_dashboard import sections
from costspan_dashboard.blocks import STYLE, block
from costspan_dashboard.overview import FIRST_WINDOW, WINDOWS, Overview, projects
from costspan_dashboard.settings import Settings

_KEPT_S = 300.0
_NOBODY = "default"

_overview = st.cache_resource(ttl=_KEPT_S, max_entries=8, show_spinner="Adding up …")(Overview.load)
_projects = st.cache_data(ttl=30.0, show_spinner=False)(projects)


def main() -> None:
    """Draw the page."""
    settings = Settings.read()
    st.set_page_config(page_title="costspan", layout="wide")
    st.html(STYLE)
    brand, project_box, window_box, refresh_box = st.columns([6, 2.4, 2.4, 1.2], vertical_alignment="bottom")
    if refresh_box.button("Refresh", width="stretch"):
        _overview.clear()
        _projects.clear()
    window = window_box.selectbox("Window", list(WINDOWS), index=list(WINDOWS).index(FIRST_WINDOW), key="window")
    try:
        known = sorted({*_projects(settings.store), *filter(None, [settings.project])}) or [_NOBODY]
        first = known.index(settings.project) if settings.project else 0
        project = project_box.selectbox("Project", known, index=first, key="project")
        overview = _overview(settings.store, project, window)
        _header(brand, f"{project} · {window.lower()} · as of {overview.read:%H:%M:%S} UTC")
        _draw(overview, settings.store)
    except AnalyticsError as error:
        _header(brand, settings.store)
        st.error(f"{error} Then press Refresh.")


def _header(place: st.delta_generator.DeltaGenerator, note: str) -> None:
    place.html(block(f'<div class="brand">costspan</div><div class="soft">{escape(note)}</div>'))


def _draw(overview: Overview, store: str) -> None:
    if overview.is_empty:
        st.info(
            f"Nothing of project {overview.store.project!r} is stored in this window. Choose a wider window or another "
            f"project; or point an app and an engine at the collector of `{store}` (see `costspan demo`), and press Refresh."
        )
        return
    sections.laws(overview)
    sections.tail(overview.tail)
    sections.matrix(overview.matrix)
    sections.money(overview)
    sections.units(overview.units)
    sections.slowest(overview)


if __name__ == "__main__":
    main()
