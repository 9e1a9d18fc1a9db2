//! Reading JSON without keeping what is not needed: unknown fields cost nothing, lists have limits, and what is not supported is noticed
//! by name.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A JSON object that is read field by field.
pub(crate) trait Object: Default {
    /// What it is, for error messages.
    const WHAT: &'static str;

    /// Takes the value of a field, or [`skip`]s it.
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error>;
}

/// Reads an object.
pub(crate) fn read<'de, T: Object, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct Fields<T>(PhantomData<T>);
    impl<'de, T: Object> Visitor<'de> for Fields<T> {
        type Value = T;

        fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
            write!(formatter, "{}", T::WHAT)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
            let mut object = T::default();
            while let Some(name) = map.next_key::<String>()? {
                object.field(&name, &mut map)?;
            }
            Ok(object)
        }
    }
    deserializer.deserialize_map(Fields(PhantomData))
}

/// Passes over a value.
pub(crate) fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(|_| ())
}

/// The elements of a list, at most `limit`.
pub(crate) fn elements<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
    mut list: A,
    limit: usize,
) -> Result<Vec<T>, A::Error> {
    let mut elements = Vec::new();
    while let Some(element) = list.next_element()? {
        if elements.len() == limit {
            return Err(A::Error::custom(format!("more than {limit} elements")));
        }
        elements.push(element);
    }
    Ok(elements)
}

/// A list of at most `LIMIT` elements.
#[derive(Debug)]
pub(crate) struct AtMost<T, const LIMIT: usize>(pub(crate) Vec<T>);

impl<'de, T: Deserialize<'de>, const LIMIT: usize> Deserialize<'de> for AtMost<T, LIMIT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const LIMIT: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const LIMIT: usize> Visitor<'de> for List<T, LIMIT> {
            type Value = Vec<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Vec<T>, A::Error> {
                elements(list, LIMIT)
            }
        }
        let list = List::<T, LIMIT>(PhantomData);
        deserializer.deserialize_seq(list).map(Self)
    }
}

/// Whether a value says anything: `null`, `false`, zero and what is empty do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Something(pub(crate) bool);

impl<'de> Deserialize<'de> for Something {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Anything;
        impl<'de> Visitor<'de> for Anything {
            type Value = bool;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("any value")
            }

            fn visit_unit<E>(self) -> Result<bool, E> {
                Ok(false)
            }

            fn visit_bool<E>(self, value: bool) -> Result<bool, E> {
                Ok(value)
            }

            fn visit_i64<E>(self, value: i64) -> Result<bool, E> {
                Ok(value != 0)
            }

            fn visit_u64<E>(self, value: u64) -> Result<bool, E> {
                Ok(value != 0)
            }

            fn visit_f64<E>(self, value: f64) -> Result<bool, E> {
                Ok(value != 0.0)
            }

            fn visit_str<E>(self, value: &str) -> Result<bool, E> {
                Ok(!value.is_empty())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<bool, A::Error> {
                let mut any = false;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    any = true;
                }
                Ok(any)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
                let mut any = false;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    any = true;
                }
                Ok(any)
            }
        }
        deserializer.deserialize_any(Anything).map(Self)
    }
}

/// A string or a list of strings, at most `LIMIT`.
#[derive(Debug)]
pub(crate) struct Strings<const LIMIT: usize>(pub(crate) Vec<String>);

impl<'de, const LIMIT: usize> Deserialize<'de> for Strings<LIMIT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany<const LIMIT: usize>;
        impl<'de, const LIMIT: usize> Visitor<'de> for OneOrMany<LIMIT> {
            type Value = Vec<String>;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a string or a list of strings")
            }

            fn visit_str<E>(self, text: &str) -> Result<Vec<String>, E> {
                Ok(vec![text.into()])
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Vec<String>, A::Error> {
                elements(list, LIMIT)
            }
        }
        deserializer.deserialize_any(OneOrMany::<LIMIT>).map(Self)
    }
}

/// The first thing in a request that is not supported.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Option<(&'static str, String)>);

impl Refusals {
    /// Notes something that is not supported.
    pub(crate) fn note(&mut self, param: &'static str, message: impl Into<String>) {
        self.0.get_or_insert_with(|| (param, message.into()));
    }

    /// Notes a field that is not supported, if it says anything.
    pub(crate) fn note_field<'de, A: MapAccess<'de>>(
        &mut self,
        param: &'static str,
        map: &mut A,
    ) -> Result<(), A::Error> {
        if map.next_value::<Something>()?.0 {
            self.note(param, format!("`{param}` is not supported by this server"));
        }
        Ok(())
    }

    /// The first refusal as an error.
    pub(crate) fn check(&self) -> Result<(), crate::error::ApiError> {
        match &self.0 {
            None => Ok(()),
            Some((param, message)) => {
                Err(crate::error::ApiError::unsupported(*param, message.clone()))
            }
        }
    }
}
