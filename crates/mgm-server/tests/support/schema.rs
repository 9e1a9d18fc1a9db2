//! Holds answers against the description: the part of JSON Schema that `openapi.json` uses, and stricter: a field that is not described is
//! wrong.

use std::sync::OnceLock;

use serde_json::Value;

fn description() -> &'static Value {
    static DESCRIPTION: OnceLock<Value> = OnceLock::new();
    DESCRIPTION.get_or_init(|| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    })
}

/// Asserts that `value` is what the schema of this name describes.
#[track_caller]
pub(crate) fn check(name: &str, value: &Value) {
    let schema = &description()["components"]["schemas"][name];
    assert!(schema.is_object(), "no schema {name}");
    if let Err(problem) = conforms(schema, value, name) {
        panic!("{problem}\n{value:#}");
    }
}

fn conforms(schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = description().pointer(&reference[1..]).unwrap();
        return conforms(target, value, at);
    }
    if let Some(variants) = schema["anyOf"].as_array() {
        let problems: Vec<String> = variants
            .iter()
            .filter_map(|variant| conforms(variant, value, at).err())
            .collect();
        if problems.len() == variants.len() {
            return Err(problems.join("; or "));
        }
    }
    if let Some(expected) = schema.get("const")
        && expected != value
    {
        return Err(format!("{at} is {value}, not {expected}"));
    }
    if let Some(expected) = schema["enum"].as_array()
        && !expected.contains(value)
    {
        return Err(format!("{at} is {value}, none of {expected:?}"));
    }
    check_type(schema, value, at)?;
    for (bound, holds) in [
        (
            "minimum",
            (|value, bound| value >= bound) as fn(f64, f64) -> bool,
        ),
        ("maximum", |value, bound| value <= bound),
    ] {
        if let (Some(bound), Some(value)) = (schema[bound].as_f64(), value.as_f64())
            && !holds(value, bound)
        {
            return Err(format!("{at} is {value}, against its bound {bound}"));
        }
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        for (index, value) in values.iter().enumerate() {
            conforms(items, value, &format!("{at}[{index}]"))?;
        }
    }
    if let Some(object) = value.as_object() {
        check_fields(schema, object, at)?;
    }
    Ok(())
}

fn check_type(schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let Some(expected) = schema.get("type") else {
        return Ok(());
    };
    let is = |name: &Value| match name.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("what is {other}?"),
    };
    let fits = expected
        .as_array()
        .map_or_else(|| is(expected), |names| names.iter().any(is));
    match fits {
        true => Ok(()),
        false => Err(format!("{at} is {value}, not of type {expected}")),
    }
}

fn check_fields(
    schema: &Value,
    object: &serde_json::Map<String, Value>,
    at: &str,
) -> Result<(), String> {
    for name in schema["required"].as_array().into_iter().flatten() {
        if !object.contains_key(name.as_str().unwrap()) {
            return Err(format!("{at} lacks {name}"));
        }
    }
    let Some(fields) = schema["properties"].as_object() else {
        let further = schema
            .get("additionalProperties")
            .filter(|further| further.is_object());
        if let Some(further) = further {
            for (name, value) in object {
                conforms(further, value, &format!("{at}.{name}"))?;
            }
        }
        return Ok(());
    };
    for (name, value) in object {
        let field = fields
            .get(name)
            .ok_or_else(|| format!("{at}.{name} is not described"))?;
        conforms(field, value, &format!("{at}.{name}"))?;
    }
    Ok(())
}
