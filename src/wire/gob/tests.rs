use super::*;
use crate::limits::GOB_FIELDS_COUNT_MAX;

const RECORDED: &[u8] = include_bytes!("../../../tests/vectors/master/nodepass.gob");

// What a test file defines.
const MAP_ID: TypeId = 64;
const INSTANCE_ID: TypeId = 65;
const OTHER_ID: TypeId = 66;

/// Bytes of a gob, as Go writes them.
#[derive(Clone, Default)]
struct Gob(Vec<u8>);

impl Gob {
    fn byte(mut self, byte: u8) -> Self {
        self.0.push(byte);
        self
    }

    fn uint(mut self, number: u64) -> Self {
        match u8::try_from(number) {
            Ok(byte) if byte < 0x80 => self.byte(byte),
            _ => {
                let skipped = usize::try_from(number.leading_zeros()).unwrap() / 8;
                let bytes = &number.to_be_bytes()[skipped..];
                self.0
                    .push(u8::try_from(bytes.len()).unwrap().wrapping_neg());
                self.0.extend(bytes);
                self
            }
        }
    }

    fn int(self, number: i64) -> Self {
        let coded = number.cast_unsigned() << 1;
        self.uint(if number < 0 { !coded } else { coded })
    }

    fn text(mut self, text: &str) -> Self {
        self = self.uint(u64::try_from(text.len()).unwrap());
        self.0.extend(text.as_bytes());
        self
    }

    /// A message of what `of` writes.
    fn message(mut self, of: impl FnOnce(Self) -> Self) -> Self {
        let message = of(Self::default()).0;
        self = self.uint(u64::try_from(message.len()).unwrap());
        self.0.extend(message);
        self
    }

    /// The definition of a type: the field `kind` of a wire type, then what `of` writes.
    fn define(self, id: TypeId, kind: u8, of: impl FnOnce(Self) -> Self) -> Self {
        self.message(|gob| {
            let common = gob.int(-id).byte(kind + 1).byte(1).byte(1).text("T");
            of(common.byte(1).int(id).byte(0)).byte(0).byte(0)
        })
    }

    fn define_array(self, id: TypeId, element: TypeId, length: i64) -> Self {
        self.define(id, 0, |gob| gob.byte(1).int(element).byte(1).int(length))
    }

    fn define_slice(self, id: TypeId, element: TypeId) -> Self {
        self.define(id, 1, |gob| gob.byte(1).int(element))
    }

    fn define_struct(self, id: TypeId, fields: &[(&str, TypeId)]) -> Self {
        self.define(id, 2, |gob| {
            let count = gob.byte(1).uint(u64::try_from(fields.len()).unwrap());
            fields.iter().fold(count, |gob, (name, id)| {
                gob.byte(1).text(name).byte(1).int(*id).byte(0)
            })
        })
    }

    fn define_map(self, id: TypeId, key: TypeId, element: TypeId) -> Self {
        self.define(id, 3, |gob| gob.byte(1).int(key).byte(1).int(element))
    }

    fn define_opaque(self, id: TypeId, kind: u8) -> Self {
        self.define(id, kind, |gob| gob)
    }

    /// The value: `count` entries that `of` writes.
    fn value(self, count: u64, of: impl FnOnce(Self) -> Self) -> Self {
        self.message(|gob| of(gob.int(MAP_ID).byte(0).uint(count)))
    }

    /// The value: one instance named `a`, whose fields `of` writes.
    fn one(self, of: impl FnOnce(Self) -> Self) -> Self {
        self.value(1, |gob| of(gob.text("a")).byte(0))
    }

    fn read(&self) -> Result<Vec<GobInstance>, GobError> {
        decode_instances(&self.0)
    }

    fn reason(&self) -> GobErrorReason {
        self.read().unwrap_err().reason
    }
}

/// The definitions of a file whose instances have `fields`.
fn with_fields(fields: &[(&str, TypeId)]) -> Gob {
    let gob = Gob::default().define_map(MAP_ID, TEXT, INSTANCE_ID);
    gob.define_struct(INSTANCE_ID, fields)
}

#[test]
fn the_recorded_file_is_read_whole() {
    let instances = decode_instances(RECORDED).unwrap();
    let ids: Vec<&str> = instances.iter().map(|found| found.id.as_str()).collect();
    assert_eq!(
        ids,
        ["37413be9", "********", "6e2f58e2", "1e2b9ab8", "09d7b977"]
    );
    let [bad, key, _, server, running] = &instances[..] else {
        panic!("five");
    };
    assert_eq!(
        [&bad.alias, &bad.kind, &bad.status],
        ["bad", "client", "error"]
    );
    assert!(bad.restart && bad.mode == 0);
    assert_eq!([&key.alias, &key.kind, &key.status], ["my master", "", ""]);
    assert_eq!(key.url, "b6dfb0b6ce64c0965cef45821affe64d");
    assert_eq!(key.config, "2ae8f0e11dc09208");
    assert!(!key.restart && key.meta == GobMeta::default());

    let expected = GobInstance {
        id: "1e2b9ab8".to_owned(),
        alias: "renamed".to_owned(),
        kind: "server".to_owned(),
        status: "stopped".to_owned(),
        url: "server://127.0.0.1:19001/127.0.0.1:19081?log=info&mode=1&tls=0".to_owned(),
        config: "server://127.0.0.1:19001/127.0.0.1:19081?block=0&dial=auto&dns=5m0s&log=info&\
                 max=1024&mode=1&notcp=0&noudp=0&proxy=0&rate=0&read=0s&slot=65536&tls=0&type=0"
            .to_owned(),
        restart: false,
        meta: GobMeta {
            peer: GobPeer {
                sid: "S1".to_owned(),
                kind: "1".to_owned(),
                alias: "svc".to_owned(),
            },
            tags: BTreeMap::from([("only".to_owned(), "1".to_owned())]),
        },
        mode: 1,
        ..GobInstance::default()
    };
    assert!(*server == expected);
    assert_eq!(
        running.url,
        "client://pass%40word@127.0.0.1:19090/127.0.0.1:19080?foo=bar&log=debug&mode=1"
    );
    assert_eq!([&running.alias, &running.status], ["", "running"]);
}

#[test]
fn a_file_that_ends_early_is_refused_wherever_it_ends() {
    for end in 0..RECORDED.len() {
        let error = decode_instances(&RECORDED[..end]).unwrap_err();
        assert!(error.offset <= end, "{end}: {error}");
    }
}

#[test]
fn fields_are_found_by_their_names() {
    let gob = with_fields(&[
        ("UDPTX", INT),
        ("Ping", UINT),
        ("New", TEXT),
        ("URL", TEXT),
        ("TCPRX", UINT),
        ("Restart", BOOL),
    ]);
    let gob = gob.value(2, |gob| {
        let first = gob.text("a").byte(1).int(300).byte(1).uint(7);
        let first = first.byte(1).text("?").byte(1).text("client://");
        let first = first.byte(1).uint(u64::MAX).byte(1).byte(1).byte(0);
        first.text("b").byte(1).int(-1).byte(4).uint(128).byte(0)
    });
    let instances = gob.read().unwrap();
    let [first, second] = &instances[..] else {
        panic!("two");
    };
    assert_eq!((first.udp_sent, first.ping), (300, 7));
    assert_eq!((first.tcp_received, first.restart), (u64::MAX, true));
    assert_eq!([&first.id, &first.url], ["a", "client://"]);
    // What is below zero counts as nothing; fields may be left out.
    assert_eq!((second.udp_sent, second.tcp_received), (0, 128));
    assert_eq!(second.id, "b");
}

#[test]
fn unknown_fields_of_every_kind_are_stepped_over() {
    let point = &[("X", INT), ("Y", FLOAT)];
    let gob = with_fields(&[
        ("A", BOOL),
        ("B", INT),
        ("C", UINT),
        ("D", FLOAT),
        ("E", BYTES),
        ("F", TEXT),
        ("G", COMPLEX),
        ("H", OTHER_ID),
        ("I", OTHER_ID + 1),
        ("J", OTHER_ID + 2),
        ("K", OTHER_ID + 3),
        ("L", OTHER_ID + 4),
        ("M", OTHER_ID + 7),
        ("N", OTHER_ID + 8),
        ("Meta", OTHER_ID + 5),
        ("Alias", TEXT),
    ]);
    let gob = gob.define_struct(OTHER_ID, point);
    let gob = gob.define_slice(OTHER_ID + 1, OTHER_ID);
    let gob = gob.define_array(OTHER_ID + 2, TEXT, 2);
    let gob = gob.define_map(OTHER_ID + 3, INT, OTHER_ID + 2);
    let gob = gob.define_opaque(OTHER_ID + 4, 4);
    let gob = gob.define_opaque(OTHER_ID + 7, 5);
    let gob = gob.define_opaque(OTHER_ID + 8, 6);
    let gob = gob.define_struct(OTHER_ID + 5, &[("A", BOOL), ("Peer", OTHER_ID + 6)]);
    let gob = gob.define_struct(OTHER_ID + 6, &[("A", BYTES), ("SID", TEXT)]);
    let gob = gob.one(|gob| {
        // 17.0 in the bytes of Go's documentation.
        let gob = gob.byte(1).byte(1).byte(1).int(-129).byte(1).uint(1 << 40);
        let gob = gob.byte(1).byte(0xfe).byte(0x31).byte(0x40);
        let gob = gob.byte(1).text("bytes").byte(1).text("text");
        let gob = gob.byte(1).byte(0xfe).byte(0x31).byte(0x40).byte(0);
        let gob = gob.byte(1).byte(1).int(5).byte(0);
        let gob = gob.byte(1).uint(2).byte(0).byte(2).byte(9).byte(0);
        let gob = gob.byte(1).uint(2).text("x").text("yz");
        let gob = gob.byte(1).uint(1).int(-1).uint(2).text("").text("w");
        let gob = gob.byte(1).text("time").byte(1).text("").byte(1).text("x");
        let gob = gob.byte(1).byte(1).byte(1).byte(1).byte(1).text("bytes");
        gob.byte(1)
            .text("sid")
            .byte(0)
            .byte(0)
            .byte(1)
            .text("alias")
    });
    let instances = gob.read().unwrap();
    assert_eq!(instances.len(), 1);
    assert_eq!(instances[0].alias, "alias");
    assert_eq!(instances[0].meta.peer.sid, "sid");
}

#[test]
fn a_value_of_an_open_type_is_refused() {
    let gob = with_fields(&[("A", INTERFACE)]).one(|gob| gob.byte(1).byte(0));
    assert_eq!(gob.reason(), GobErrorReason::Interface);
}

#[test]
fn a_known_field_of_another_type_is_refused_by_its_name() {
    let number = with_fields(&[("URL", INT)]).one(|gob| gob.byte(1).int(1));
    let text = number.read().unwrap_err().to_string();
    assert!(text.starts_with("the field URL is not of type string, at byte "));
    for field in ["Restart", "TCPRX", "Meta"] {
        let gob = with_fields(&[(field, TEXT)]).one(|gob| gob.byte(1).text("x"));
        let reason = gob.reason();
        let GobErrorReason::FieldType { field: named, .. } = reason else {
            panic!("{field}: {reason:?}");
        };
        assert_eq!(named, field);
    }
    let tags = with_fields(&[("Meta", OTHER_ID)]).define_struct(OTHER_ID, &[("Tags", BYTES)]);
    let tags = tags.one(|gob| gob.byte(1).byte(1).text("x").byte(0));
    let expected = GobErrorReason::FieldType {
        field: "Tags",
        expected: "map[string]string",
    };
    assert_eq!(tags.reason(), expected);
}

#[test]
fn sizes_and_counts_that_are_not_there_cost_nothing() {
    for count in [3, u64::from(u32::MAX), u64::MAX] {
        let instances = with_fields(&[]).value(count, |gob| gob.text("a").byte(0));
        assert_eq!(instances.reason(), GobErrorReason::Count);
        let text = with_fields(&[("URL", TEXT)]).one(|gob| gob.byte(1).uint(count).byte(0));
        assert_eq!(text.reason(), GobErrorReason::Count);
        let skipped = with_fields(&[("A", OTHER_ID)]).define_slice(OTHER_ID, BOOL);
        let skipped = skipped.one(|gob| gob.byte(1).uint(count).byte(0));
        assert_eq!(skipped.reason(), GobErrorReason::Count);
        let message = Gob::default().uint(count).byte(0);
        assert_eq!(message.reason(), GobErrorReason::Count);
        let fields = Gob::default().define(INSTANCE_ID, 2, |gob| gob.byte(1).uint(count));
        assert_eq!(fields.reason(), GobErrorReason::Count);
    }
    // A field far behind the last one.
    let far = with_fields(&[("A", BOOL)]).one(|gob| gob.byte(1).byte(1).uint(u64::MAX));
    assert_eq!(far.reason(), GobErrorReason::UnknownField);
}

#[test]
fn each_limit_holds_at_its_end_and_not_beyond() {
    let instances = |count: usize| {
        let count = u64::try_from(count).unwrap();
        let gob = with_fields(&[]);
        let gob = gob.value(count, |gob| {
            (0..count).fold(gob, |gob, id| gob.text(&id.to_string()).byte(0))
        });
        gob.read().map(|instances| instances.len())
    };
    assert_eq!(instances(0), Ok(0));
    assert_eq!(
        instances(GOB_INSTANCES_COUNT_MAX),
        Ok(GOB_INSTANCES_COUNT_MAX)
    );
    let error = instances(GOB_INSTANCES_COUNT_MAX + 1).unwrap_err();
    assert_eq!(error.reason, GobErrorReason::InstancesCount);

    // Of two instances.
    let tags = |counts: [usize; 2]| {
        let gob = with_fields(&[("Meta", OTHER_ID)]);
        let gob = gob.define_struct(OTHER_ID, &[("Tags", OTHER_ID + 1)]);
        let gob = gob.define_map(OTHER_ID + 1, TEXT, TEXT).value(2, |gob| {
            counts.iter().zip(["a", "b"]).fold(gob, |gob, (count, id)| {
                let gob = gob.text(id).byte(1).byte(1);
                let gob = gob.uint(u64::try_from(*count).unwrap());
                let tags = (0..*count).fold(gob, |gob, key| gob.text(&key.to_string()).text(""));
                tags.byte(0).byte(0)
            })
        });
        gob.read().map(|instances| instances[0].meta.tags.len())
    };
    assert_eq!(tags([GOB_TAGS_COUNT_MAX, 0]), Ok(GOB_TAGS_COUNT_MAX));
    for counts in [[GOB_TAGS_COUNT_MAX + 1, 0], [GOB_TAGS_COUNT_MAX, 1]] {
        let error = tags(counts).unwrap_err();
        assert_eq!(error.reason, GobErrorReason::TagsCount);
    }

    let types = |count: usize| {
        let more = OTHER_ID..OTHER_ID + TypeId::try_from(count - 2).unwrap();
        let gob = more.fold(with_fields(&[]), |gob, id| gob.define_slice(id, BOOL));
        gob.one(|gob| gob).read().map(|_| ())
    };
    assert_eq!(types(GOB_TYPES_COUNT_MAX), Ok(()));
    let error = types(GOB_TYPES_COUNT_MAX + 1).unwrap_err();
    assert_eq!(error.reason, GobErrorReason::TypesCount);

    let fields = |count: usize| {
        let gob = with_fields(&vec![("A", BOOL); count]);
        gob.one(|gob| gob).read().map(|_| ())
    };
    assert_eq!(fields(GOB_FIELDS_COUNT_MAX), Ok(()));
    let error = fields(GOB_FIELDS_COUNT_MAX + 1).unwrap_err();
    assert_eq!(error.reason, GobErrorReason::FieldsCount);

    // A type that holds itself, as a list does.
    let depth = |depth: usize| {
        let gob = with_fields(&[("A", OTHER_ID)]).define_slice(OTHER_ID, OTHER_ID);
        let gob = gob.one(|gob| (1..depth).fold(gob.byte(1), |gob, _| gob.byte(1)).byte(0));
        gob.read().map(|_| ())
    };
    assert_eq!(depth(GOB_DEPTH_MAX), Ok(()));
    let error = depth(GOB_DEPTH_MAX + 1).unwrap_err();
    assert_eq!(error.reason, GobErrorReason::Depth);

    let mut file = RECORDED.to_vec();
    file.resize(GOB_SIZE_MAX, 0);
    assert_eq!(decode_instances(&file).unwrap().len(), 5);
    file.push(0);
    let error = decode_instances(&file).unwrap_err();
    assert_eq!(error.reason, GobErrorReason::TooLarge);
}

#[test]
fn instances_that_contradict_themselves_are_refused() {
    let fields = with_fields(&[("ID", TEXT)]);
    let other = fields.clone().one(|gob| gob.byte(1).text("b"));
    assert_eq!(other.reason(), GobErrorReason::Id);
    let twice = fields.value(2, |gob| gob.text("a").byte(0).text("a").byte(0));
    assert_eq!(twice.reason(), GobErrorReason::Duplicate);
}

#[test]
fn what_is_no_gob_of_instances_is_refused() {
    assert_eq!(Gob::default().reason(), GobErrorReason::NoValue);
    assert_eq!(with_fields(&[]).reason(), GobErrorReason::NoValue);
    assert_eq!(Gob(b"{}".to_vec()).reason(), GobErrorReason::Count);

    let point = Gob::default().define_struct(MAP_ID, &[("X", INT)]);
    let point = point.message(|gob| gob.int(MAP_ID).byte(1).int(1).byte(0));
    assert_eq!(point.reason(), GobErrorReason::NoInstances);
    for (key, element) in [(INT, INSTANCE_ID), (TEXT, TEXT), (TEXT, OTHER_ID)] {
        let gob = Gob::default().define_map(MAP_ID, key, element);
        let gob = gob.define_struct(INSTANCE_ID, &[]).value(0, |gob| gob);
        assert_eq!(gob.reason(), GobErrorReason::NoInstances);
    }

    let defined = with_fields(&[]);
    let again = defined.clone().define_slice(MAP_ID, TEXT);
    assert_eq!(again.reason(), GobErrorReason::Redefinition);
    for id in [TEXT, DEFINED_FIRST - 1] {
        let gob = Gob::default().define_slice(id, TEXT);
        assert_eq!(gob.reason(), GobErrorReason::Redefinition);
    }
    let lowest = Gob::default().message(|gob| gob.int(i64::MIN).byte(2).byte(0).byte(0));
    assert_eq!(lowest.reason(), GobErrorReason::Redefinition);

    let unknown = with_fields(&[("A", 16)]).one(|gob| gob.byte(1).byte(0));
    assert_eq!(unknown.reason(), GobErrorReason::UnknownType);
    let long = with_fields(&[("A", INT)]).one(|gob| gob.byte(1).byte(0xf7));
    assert_eq!(long.reason(), GobErrorReason::Integer);
    let raw = with_fields(&[("URL", TEXT)]).one(|gob| gob.byte(1).byte(1).byte(0xff));
    assert_eq!(raw.reason(), GobErrorReason::Text);
    let excess = with_fields(&[]).one(|gob| gob.byte(0));
    assert_eq!(excess.reason(), GobErrorReason::Excess);
    let eight = Gob::default().define(MAP_ID, 7, |gob| gob);
    assert_eq!(eight.reason(), GobErrorReason::Definition);
    let two = Gob::default().message(|gob| gob.int(-MAP_ID).byte(2).byte(0).byte(1).byte(0));
    assert_eq!(two.reason(), GobErrorReason::Definition);
}

#[test]
fn nothing_behind_the_value_counts() {
    let gob = with_fields(&[]).one(|gob| gob).byte(0x7f).byte(0xff);
    assert_eq!(gob.read().unwrap().len(), 1);
}

#[test]
fn urls_are_not_part_of_what_is_shown() {
    let instances = decode_instances(RECORDED).unwrap();
    let text = format!("{instances:?}");
    assert!(text.contains("09d7b977") && !text.contains("pass%40word"));
}
