{#-
    Names of all segments: every SQL file in models/segments, in order.

    dbt's `graph` is empty while models are parsed, and a `ref` that is first seen at run time makes no edge. The files
    that dbt is about to parse are known then, though: the resolver behind `ref` holds them. So the edges are there, in
    dbt's graph and in Dagster's, and adding a file is all it takes. At run time the same list comes from the graph; if
    the two differ, the project was parsed before a file came or went, and we refuse rather than forget a segment.
-#}
{% macro segment_names() %}
    {%- set names = [] -%}
    {%- if execute -%}
        {%- for node in graph.nodes.values()
            if node.resource_type == 'model' and node.package_name == project_name and node.fqn[1] == 'segments' -%}
            {%- do names.append(node.name) -%}
            {%- if node.unique_id not in model.depends_on.nodes -%}
                {%- do exceptions.raise_compiler_error(
                    "Segment '" ~ node.name ~ "' was added after the project was parsed. Fix: run `dbt parse --no-partial-parse`."
                ) -%}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {%- if ref.manifest is not defined or ref.manifest.files is not defined -%}
            {%- do exceptions.raise_compiler_error(
                "This version of dbt does not tell which files it parses. Fix: install dbt-core as pinned in pyproject.toml."
            ) -%}
        {%- endif -%}
        {%- for file in ref.manifest.files.values()
            if file.project_name == project_name
            and file.path.searched_path == 'models'
            and file.path.relative_path.startswith('segments/')
            and file.path.relative_path.endswith('.sql') -%}
            {%- do names.append(file.path.relative_path.split('/')[-1][:-4]) -%}
        {%- endfor -%}
    {%- endif -%}
    {{ return(names | sort) }}
{% endmacro %}


{#- Current members of all segments: segment, contact_id. -#}
{% macro segment_members() %}
    {%- set names = segment_names() -%}
    {%- for name in names %}
    select '{{ name }}' as segment, contact_id from {{ ref(name) }}
    {%- if not loop.last %}
    union all
    {%- endif %}
    {%- else %}
    select '' as segment, 0::Int64 as contact_id where false
    {%- endfor %}
{% endmacro %}
