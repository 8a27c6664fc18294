"""Small chat templates, each with one habit of the official ones."""

from __future__ import annotations

# Writes JSON keys between angle brackets, as the templates of the Coder models do.
CODER = """
{%- macro keys(object, known) %}
  {%- for key in object if key not in known %}
    {{- '\\n<' ~ key ~ '>' ~ (object[key] | string) ~ '</' ~ key ~ '>' }}{%- endfor %}
{%- endmacro %}
{%- if tools %}{{- '<|im_start|>system\\n<tools>' }}
  {%- for tool in tools %}{%- set f = tool.function %}{{- '\\n<function>' ~ f.name ~ '</function>' }}
    {{- keys(f.parameters, ['type', 'properties']) }}
    {%- for name, fields in f.parameters.properties | items %}
      {{- '\\n<' + name + '>' }}{{- keys(fields, ['type']) }}
    {%- endfor %}
  {%- endfor %}{{- '</tools><|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
  {{- '<|im_start|>' + m.role + '\\n' + (m.content | trim) }}
  {%- for call in m.tool_calls or [] %}{%- set c = call.function %}
    {{- '\\n<tool_call>\\n<function=' + c.name + '>\\n' }}
    {%- for k, v in c.arguments | items %}{{- '<parameter=' + k + '>\\n' ~ v ~ '\\n</parameter>\\n' }}{%- endfor %}
    {{- '</function>\\n</tool_call>' }}
  {%- endfor %}
  {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

# Content may be a list; its items are written one after the other, as in the vision templates.
LIST_CONTENT = """
{%- for m in messages %}
  {{- '<|im_start|>' + m.role + '\\n' }}
  {%- if m.content is string %}{{- m.content }}{%- else %}
    {%- for item in m.content %}
      {%- if item.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
      {%- elif item.type == 'video' %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}
      {%- elif 'text' in item %}{{- item.text }}{%- endif %}
    {%- endfor %}
  {%- endif %}
  {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

# SmolLM2's own: no tools, a system turn of its own where there is none.
NO_TOOLS = """
{%- for m in messages %}
  {%- if loop.first and m.role != 'system' %}{{- '<|im_start|>system\\nYou are a default.<|im_end|>\\n' }}{%- endif %}
  {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

# The generation prompt opens the reasoning, as Qwen3.5's does; reasoning before the last question is dropped.
OPENS_THINK = """
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- if tools %}{{- '<|im_start|>system\\n' ~ (tools | tojson) ~ '<|im_end|>\\n' }}{%- endif %}
{%- for m in messages %}
  {{- '<|im_start|>' + m.role + '\\n' }}
  {%- if m.role == 'assistant' and loop.index0 > ns.last %}
    {{- '<think>\\n' + (m.reasoning_content or '') | trim + '\\n</think>\\n\\n' }}
  {%- endif %}
  {{- m.content | trim }}
  {%- for call in m.tool_calls or [] %}
    {{- '\\n<tool_call>\\n' ~ (call.function | tojson) ~ '\\n</tool_call>' }}
  {%- endfor %}
  {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
  {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}
  {%- else %}{{- '<think>\\n' }}{%- endif %}
{%- endif %}
"""

# No ChatML: nothing says where an assistant's turn begins.
NO_TURNS = """
{%- for m in messages %}{{- m.role ~ ': ' ~ m.content ~ '\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}
"""
