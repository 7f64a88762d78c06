{#- Names of all segments: every SQL file in models/segments, in order. -#}
{% macro segment_names() %}
    {{ return(names_in('segments', 'Segment')) }}
{% endmacro %}


{#-
    Names of the models in a folder of models/, every SQL file of it, in order.

    dbt's `graph` is empty while models are parsed, and a `ref` that is first seen at run time makes no edge. The files
    that dbt is about to parse are known then, though: the resolver behind `ref` holds them. So the edges are there, in
    dbt's graph and in Dagster's, and adding a file is all it takes. At run time the same list comes from the graph; if
    the two differ, the project was parsed before a file came or went, and we refuse rather than forget one.
-#}
{% macro names_in(folder, what) %}
    {%- set names = [] -%}
    {%- if execute -%}
        {%- for node in graph.nodes.values()
            if node.resource_type == 'model' and node.package_name == project_name and node.fqn[1] == folder -%}
            {%- do names.append(node.name) -%}
            {%- if node.unique_id not in model.depends_on.nodes -%}
                {%- do exceptions.raise_compiler_error(
                    what ~ " '" ~ node.name ~ "' was added after the project was parsed. Fix: run `dbt parse --no-partial-parse`."
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
            and file.path.relative_path.startswith(folder ~ '/')
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


{#-
    Open stays as the last run settled them (`int_segments__settled`), none before the first run and in a full refresh.

    The log and the changes are compared with it, and it is made from them: a circle only if one forgets that each run reads
    what the run before left. So it is looked up by name here and never by `ref`. Whatever the log says later than its
    `folded_through` has still to be folded in; nothing depends on how long ago that was.
-#}
{% macro settled_stays() %}
    {%- if not execute or flags.FULL_REFRESH -%}
        {{ return(none) }}
    {%- endif -%}
    {%- set node = graph.nodes.values() | selectattr('name', 'equalto', 'int_segments__settled') | first -%}
    {{ return(load_cached_relation(api.Relation.create(database=node.database, schema=node.schema, identifier=node.alias))) }}
{% endmacro %}


{#- The moment up to which open stays are settled; 1970 if nobody is in any segment. -#}
{% macro settled_through(settled) -%}
    assumeNotNull((select max(folded_through) from {{ settled }}))
{%- endmacro %}


{#-
    Members of all segments, a row for each contact in each segment, told by a bit instead of a name: contact_id, word, bit.
    The segment with number n in `segment_names()` is bit n % 64 of word n // 64. Putting the bits of a contact together is
    several times cheaper than grouping by names, and that is most of what telling comers from goers costs.
-#}
{% macro segment_bits() %}
    {%- for name in segment_names() %}
    select contact_id, {{ loop.index0 // 64 }}::UInt16 as word, {{ bit_of(loop.index0) }} as bit from {{ ref(name) }}
    {%- if not loop.last %}
    union all
    {%- endif %}
    {%- else %}
    select 0::Int64 as contact_id, 0::UInt16 as word, 0::UInt64 as bit where false
    {%- endfor %}
{% endmacro %}


{% macro bit_of(number) -%}
    bitShiftLeft(1::UInt64, {{ number % 64 }})
{%- endmacro %}


{#- Names of all segments as an array, in the order of their numbers. -#}
{% macro segment_array() -%}
    [{% for name in segment_names() %}'{{ name }}'{{ ', ' if not loop.last }}{% endfor %}]::Array(String)
{%- endmacro %}


{#- Number of the segment in a column; rows of segments whose files are gone must have been left out. -#}
{% macro segment_number(column) -%}
    {%- set names = segment_names() -%}
    {%- if names -%}
    transform({{ column }}, {{ segment_array() }}, range({{ names | length }}), 0)::UInt16
    {%- else -%}
    0::UInt16
    {%- endif -%}
{%- endmacro %}
