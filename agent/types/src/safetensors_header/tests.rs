use super::*;

/// An object with these tensors (name, bytes of U8 data), and its header.
fn object(tensors: &[(&str, usize)]) -> (Vec<u8>, Bytes) {
    let mut json = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut offset = 0;
    for (name, len) in tensors {
        let end = offset + len;
        json += &format!(r#","{name}":{{"dtype":"U8","shape":[{len}],"data_offsets":[{offset},{end}]}}"#);
        offset = end;
    }
    json.push('}');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    let raw = Bytes::from(bytes.clone());
    bytes.extend((0..offset).map(|i| u8::try_from(i % 251).unwrap()));
    (bytes, raw)
}

fn header_of(json: &str, data: u64) -> Result<SafetensorsHeader, HeaderError> {
    let mut raw = (json.len() as u64).to_le_bytes().to_vec();
    raw.extend_from_slice(json.as_bytes());
    let object_len = raw.len() as u64 + data;
    SafetensorsHeader::parse(raw.into(), object_len)
}

#[test]
fn the_aligned_blob_holds_the_same_tensors_on_64_bytes() {
    let (object, raw) = object(&[("scale", 4), ("a", 128), ("empty", 0), ("bias", 10), ("b", 6400)]);
    let header = SafetensorsHeader::parse(raw, object.len() as u64).unwrap();
    let placement = header.aligned().unwrap();
    let blob = placement.apply(&object);
    let before = safetensors::SafeTensors::deserialize(&object).unwrap();
    let after = safetensors::SafeTensors::deserialize(&blob).unwrap();
    assert_eq!(after.len(), before.len());
    for (name, tensor) in before.iter() {
        assert_eq!(after.tensor(name).unwrap().data(), tensor.data(), "{name}");
        let at = after.tensor(name).unwrap().data().as_ptr() as usize - blob.as_ptr() as usize;
        assert!(!tensor.data().len().is_multiple_of(64) || at.is_multiple_of(64), "{name} begins at {at}");
    }
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&blob).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    assert_eq!(placement.literal().len() as u64 % DATA_ALIGNMENT, 0);
}

#[test]
fn headers_that_lie_about_length_are_refused_before_anything_is_allocated() {
    assert_eq!(SafetensorsHeader::length(&[1, 2, 3], 3), Err(HeaderError::TooShort(3)));
    let huge = (1_u64 << 63).to_le_bytes();
    assert_eq!(SafetensorsHeader::length(&huge, 1 << 20), Err(HeaderError::TooLong(1 << 63)));
    let beyond = 100_u64.to_le_bytes();
    let expected = HeaderError::BeyondObject { claimed: 100, object_len: 50 };
    assert_eq!(SafetensorsHeader::length(&beyond, 50), Err(expected));
}

#[test]
fn headers_that_lie_about_tensors_are_refused() {
    let tensor = |shape: &str, start: u64, end: u64| {
        format!(r#"{{"dtype":"U8","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let cases = [
        ("not json".to_owned(), 0),
        (format!(r#"{{"a":{},"b":{}}}"#, tensor("[8]", 0, 8), tensor("[8]", 4, 12)), 12),
        (format!(r#"{{"a":{},"b":{}}}"#, tensor("[8]", 0, 8), tensor("[8]", 9, 17)), 17),
        (format!(r#"{{"a":{}}}"#, tensor("[9]", 0, 8)), 8),
        (format!(r#"{{"a":{}}}"#, tensor("[18446744073709551615,2]", 0, 8)), 8),
        (format!(r#"{{"a":{}}}"#, tensor("[8]", 8, 0)), 8),
    ];
    for (json, data) in cases {
        assert!(matches!(header_of(&json, data), Err(HeaderError::Invalid(_))), "{json}");
    }
    let whole = format!(r#"{{"a":{}}}"#, tensor("[8]", 0, 8));
    assert!(header_of(&whole, 8).is_ok());
    let truncated = header_of(&whole, 7).unwrap_err();
    assert_eq!(truncated, HeaderError::DataLength { found: 7, described: 8 });
    assert!(truncated.to_string().contains("truncated"));
    assert!(header_of(&whole, 9).unwrap_err().to_string().contains("longer"));
}

/// One look through all tensors for each of them would take minutes.
#[test]
fn many_tensors_are_found_by_name_at_once() {
    const TENSORS: usize = 200_000;
    let entry = |at| format!(r#""{at}":{{"dtype":"U8","shape":[1],"data_offsets":[{at},{}]}}"#, at + 1);
    let json = format!("{{{}}}", (0..TENSORS).map(entry).collect::<Vec<_>>().join(","));
    let header = header_of(&json, TENSORS as u64).unwrap();
    let map = (0..TENSORS).map(|at| format!(r#""{at}":"s""#)).collect::<Vec<_>>().join(",");
    let index = crate::WeightIndex::parse(format!(r#"{{"weight_map":{{{map}}}}}"#).as_bytes()).unwrap();
    let started = std::time::Instant::now();
    assert_eq!(index.check_tensors("s", |tensor| header.has_tensor(tensor)), Ok(()));
    assert!(!header.has_tensor("200000") && !header.has_tensor(""));
    assert!(started.elapsed().as_secs() < 10, "took {:?}", started.elapsed());
}

#[test]
fn any_bytes_are_parsed_or_refused_without_a_panic() {
    bolero::check!().with_type::<(Vec<u8>, u64)>().for_each(|(bytes, object_len)| {
        let _ = SafetensorsHeader::length(bytes, *object_len);
        if let Ok(header) = SafetensorsHeader::parse(bytes.clone().into(), *object_len) {
            let placement = header.aligned().unwrap();
            assert_eq!(placement.object_len(), *object_len);
        }
    });
}
