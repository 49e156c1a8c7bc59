//! Names of pools as JSON, for the fields of requests.

pub(in crate::protocol::control) mod pool_name {
    //! A pool's name as JSON: the grammar of `spec`, nothing else.

    use serde::{Deserialize, Deserializer, Serializer};

    use crate::spec::PoolName;

    pub(in crate::protocol::control) fn serialize<S: Serializer>(
        name: &PoolName,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(name.as_str())
    }

    pub(in crate::protocol::control) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<PoolName, D::Error> {
        PoolName::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

pub(in crate::protocol::control) mod pool_name_option {
    //! The same, where it may be missing.

    use serde::{Deserialize, Deserializer, Serializer};

    use crate::spec::PoolName;
    pub(in crate::protocol::control) fn serialize<S: Serializer>(
        name: &Option<PoolName>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match name {
            Some(name) => serializer.serialize_some(name.as_str()),
            None => serializer.serialize_none(),
        }
    }

    pub(in crate::protocol::control) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<PoolName>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|name| PoolName::parse(&name).map_err(serde::de::Error::custom))
            .transpose()
    }
}
