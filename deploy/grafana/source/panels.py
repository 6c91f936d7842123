"""Panels, rows and variables as Grafana's dashboard JSON has them.

In the queries, `@` stands for the selector of the dashboard's job and instance variables.
"""

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
SELECTOR = 'job=~"$job", instance=~"$instance"'
WIDTH = 24  # columns of Grafana's grid

# Steps of thresholds: (colour, from this value on). The first one has no value.
NONE_IS_GOOD = [("green", None), ("red", 0.0001)]
ONE_IS_GOOD = [("red", None), ("green", 1)]


def good_below(yellow, red):
    return [("green", None), ("yellow", yellow), ("red", red)]


def rate(by, metric, more=""):
    """Events per second, summed by labels."""
    return f"sum by ({by}) (rate({metric}{{@{more}}}[$__rate_interval]))"


def total(metric, more=""):
    """Events in the time range of the dashboard."""
    return f"sum(increase({metric}{{@{more}}}[$__range]))"


def quantiles(metric, *wanted, by="", more=""):
    """One query for each quantile of a histogram."""
    labels = ", ".join(filter(None, (by, "le")))
    legend = f" {{{{{by}}}}}" if by else ""
    return [
        (
            f"p{q * 100:g}{legend}",
            f"histogram_quantile({q}, sum by ({labels}) "
            f"(rate({metric}_bucket{{@{more}}}[$__rate_interval])))",
        )
        for q in wanted
    ]


def target(letter, legend, expr, instant):
    assert "@" in expr, expr
    expr = expr.replace("@", SELECTOR)
    kind = {"instant": True, "range": False} if instant else {"instant": False, "range": True}
    form = {"format": "table"} if instant == "table" else {}
    return {
        "datasource": DATASOURCE, "editorMode": "code", "expr": expr, "legendFormat": legend,
        "refId": letter, **kind, **form,
    }  # fmt: skip


def panel(kind, title, about, unit, queries, options, instant=False, **field):
    """The part that all kinds of panels share; `field` becomes the defaults of the fields."""
    steps = field.pop("steps", [("green", None)])
    size = field.pop("size")
    return {
        "type": kind, "title": title, "description": about, "datasource": DATASOURCE,
        "gridPos": {"w": size[0], "h": size[1], "x": 0, "y": 0},
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "thresholds": {
                    "mode": "absolute",
                    "steps": [{"color": color, "value": value} for color, value in steps],
                },
                **field,
            },
            "overrides": [],
        },
        "options": options,
        "targets": [target(chr(65 + i), *q, instant) for i, q in enumerate(queries)],
    }  # fmt: skip


def stat(title, about, unit, expr, steps=None, width=3, text=None, **field):
    """One number, or several: `expr` may be a list of (legend, query). `text` maps values to
    words."""
    queries = expr if isinstance(expr, list) else [("", expr)]
    if text:
        words = {str(value): {"text": word, "index": i} for i, (value, word) in enumerate(text)}
        field["mappings"] = [{"type": "value", "options": words}]
    field |= {"color": {"mode": "thresholds"}, "noValue": "–", "size": (width, 4)}
    field["steps"] = steps or [("blue", None)]
    options = {
        "colorMode": "value", "graphMode": "none", "justifyMode": "auto", "orientation": "auto",
        "percentChangeColorMode": "standard", "showPercentChange": False,
        "textMode": "value" if len(queries) == 1 else "value_and_name",
        "wideLayout": True,
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }  # fmt: skip
    return panel("stat", title, about, unit, queries, options, instant=True, **field)


def graph(title, about, unit, *queries, steps=None, stack=False, width=8, **field):
    """Lines over time. With `steps`, the thresholds are drawn as dashed lines."""
    field["custom"] = {
        "drawStyle": "line", "lineInterpolation": "linear", "lineWidth": 1, "showPoints": "never",
        "fillOpacity": 25 if stack else 8, "spanNulls": False, "axisSoftMin": 0,
        "stacking": {"group": "A", "mode": "normal" if stack else "none"},
        "thresholdsStyle": {"mode": "dashed" if steps else "off"},
    }  # fmt: skip
    field |= {"color": {"mode": "palette-classic"}, "size": (width, 8)}
    options = {
        "legend": {
            "calcs": ["mean", "max"], "displayMode": "table", "placement": "bottom",
            "showLegend": True,
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }  # fmt: skip
    return panel(
        "timeseries", title, about, unit, queries, options, steps=steps or [("green", None)],
        **field,
    )  # fmt: skip


def table(title, about, *columns, width=WIDTH, height=9, **field):
    """One row for each set of labels; a column is (name, unit, query)."""
    made = panel(
        "table", title, about, "none", [(name, expr) for name, _, expr in columns],
        {"cellHeight": "sm", "frameIndex": 0, "showHeader": True}, instant="table",
        custom={"align": "auto", "filterable": True, "inspect": False},
        size=(width, height), **field,
    )  # fmt: skip
    names = {f"Value #{chr(65 + i)}": name for i, (name, _, _) in enumerate(columns)}
    if len(columns) == 1:
        names = {"Value": columns[0][0]}
    made["transformations"] = [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": names},
        },
    ]
    made["fieldConfig"]["overrides"] = [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "unit", "value": unit}],
        }
        for name, unit, _ in columns
    ]
    made["options"]["sortBy"] = [{"displayName": columns[0][0], "desc": True}]
    return made


def variable(name, label, metric, about):
    return {
        "type": "query", "name": name, "label": label, "description": about,
        "datasource": DATASOURCE, "query": f"label_values({metric}, {name})",
        "refresh": 2, "sort": 1, "multi": True, "includeAll": True, "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [], "hide": 0, "regex": "", "skipUrlSync": False,
    }  # fmt: skip


def place(rows):
    """Panels one beside the other until a line of the grid is full; each row begins a new line."""
    placed, y = [], 0
    for title, panels in rows:
        placed.append({
            "type": "row", "title": title, "collapsed": False, "panels": [],
            "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y},
        })  # fmt: skip
        x, y, height = 0, y + 1, 0
        for one in panels:
            at = one["gridPos"]
            if x + at["w"] > WIDTH:
                x, y, height = 0, y + height, 0
            at["x"], at["y"] = x, y
            x, height = x + at["w"], max(height, at["h"])
            placed.append(one)
        y += height
    return [{"id": i, **one} for i, one in enumerate(placed, 1)]


def dashboard(name, about, rows, more_variables=(), metric="tailwater_build_info"):
    """`metric` is one that every job has that the dashboard is about."""
    title = f"Tailwater / {name}"
    link = {
        "asDropdown": False, "icon": "external link", "includeVars": True, "keepTime": True,
        "tags": ["tailwater"], "targetBlank": False, "title": "", "tooltip": "",
        "type": "dashboards", "url": "",
    }  # fmt: skip
    source = {
        "type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus",
        "description": "A Prometheus that scrapes Tailwater, or what stores its metrics",
        "current": {"selected": True, "text": "default", "value": "default"}, "options": [],
        "refresh": 1, "hide": 0, "regex": "", "skipUrlSync": False,
        "multi": False, "includeAll": False,
    }  # fmt: skip
    job = variable("job", "Job", metric, "The scrape jobs with Tailwater")
    instance = variable(
        "instance", "Instance", f'{metric}{{job=~"$job"}}', "The instances of the jobs"
    )
    return {
        "uid": f"tailwater-{name.lower().replace(' ', '-')}", "title": title, "description": about,
        "tags": ["tailwater"], "schemaVersion": 39, "version": 1, "editable": True,
        "graphTooltip": 1, "fiscalYearStartMonth": 0, "liveNow": False, "weekStart": "",
        "refresh": "30s", "time": {"from": "now-1h", "to": "now"}, "timepicker": {},
        "timezone": "", "links": [link], "annotations": {"list": []},
        "templating": {"list": [source, job, instance, *more_variables]},
        "panels": place(rows),
    }  # fmt: skip
