//! Secrets are planted in every kind of text that a report can hold; none may appear in the output.

use proptest::prelude::*;

use super::*;

fn clean(text: &str) -> String {
    Redactor::default().clean(text)
}

/// `%` is where the secret goes. The rest must survive where it stands before `%`.
const PLANTS: [&str; 66] = [
    "password = \"%\"\n",
    "password = '%'\n",
    "jaeger_password = \"%\" # for jaeger\n",
    "password = \"\"\"\n%\n\"\"\"\nkernel = \"/k\"\n",
    "auth = { username = \"me\", password = \"%\" }\n",
    "[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"r.example\".auth]\n  username = \"me\"\n  password = \"%\"\n",
    "tokens = [\"a\", \"%\"]\n",
    "{\"password\":\"%\"}",
    "{\"password\" : \"%\", \"kernel\": 1}",
    "{\"auths\":{\"r.example\":{\"auth\":\"%\"}}}",
    "{\"auths\": {\n  \"r.example\": {\n    \"identitytoken\": \"%\"\n  }\n}}",
    "{\"msg\":\"sent {\\\"token\\\":\\\"%\\\"}\",\"level\":\"info\"}",
    "{\"a\":\"{\\\"b\\\":\\\"{\\\\\\\"password\\\\\\\":\\\\\\\"%\\\\\\\"}\\\"}\"}",
    "{\"env\":[\"A=1\",\"DB_PASSWORD=%\",\"B=2\"]}",
    "{\"args\":[\"--token\",\"%\",\"-v\"]}",
    "{\"args\":[\"--token=%\",\"-v\"]}",
    "password: %\n",
    "  password: \"%\"\n",
    "- name: x\n  token: %\n",
    "password: |\n  %\n  more\nkernel: k\n",
    "password: >-\n  %\nkernel: k\n",
    "secrets:\n- %\n- b\nkernel: k\n",
    "secrets:\n  inner: %\n\n  other: %\nkernel: k\n",
    "users:\n- name: admin\n  user:\n    client-key-data: %\n",
    "PASSWORD=%\n",
    "export API_KEY=%\n",
    "Environment=HTTP_TOKEN=%\n",
    "Environment=\"HTTP_TOKEN=%\" \"A=b\"\n",
    "MYSQL_PWD=% PATH=/bin\n",
    "time=\"now\" level=info password=% msg=hello\n",
    "time=\"now\" level=info password=\"%\" msg=hello\n",
    "mysql --password % --host h\n",
    "mysql --password=% --host h\n",
    "qemu -object secret,id=s,password=%,x=1\n",
    "curl -u me:% https://h/\n",
    "curl -H 'Authorization: Bearer %' https://h/\n",
    "Authorization: Basic %\n",
    "proxy = \"http://me:%@proxy.example:3128/\"\n",
    "HTTPS_PROXY=https://me:%@proxy.example\n",
    "https://h/path?user=me&token=%&x=1\n",
    "-----BEGIN PRIVATE KEY-----\n%\n-----END PRIVATE KEY-----\n",
    "-----BEGIN RSA PRIVATE KEY-----\n%\nno end",
    "{\"x\":\"-----BEGIN EC PRIVATE KEY-----\\n%\\n-----END EC PRIVATE KEY-----\\n\"}",
    "set-cookie: session=%\n",
    "X-Auth-Token: %\n",
    "apiKey => '%'\n",
    "secret:=%\n",
    "registry.auth=%\n",
    "aws_access_key_id = AKIA\naws_secret_access_key = %\n",
    "AWS_SECRET_ACCESS_KEY=% AWS_REGION=x\n",
    "AWS_SESSION_TOKEN: %\n",
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=%;EndpointSuffix=x\n",
    "{\"type\":\"service_account\",\"private_key\":\"-----BEGIN PRIVATE KEY-----\\n%\\n-----END PRIVATE KEY-----\\n\"}",
    "tls.key: |\n  -----BEGIN EC PRIVATE KEY-----\n  %\n  -----END EC PRIVATE KEY-----\nkernel: k\n",
    "log\n%\n%\n-----END OPENSSH PRIVATE KEY-----\nkernel\n",
    "registry.configs.\"r.example\".auth.password = \"%\"\n",
    "a.\"secret key\".b = 1\nauth.token = '%'\n",
    "redis://:%@redis:6379/0\n",
    "postgres://me:%@db/x?sslmode=disable\n",
    "/usr/bin/tool --api-key % --verbose\n",
    "/usr/bin/tool -password '%' -v\n",
    "mysql -uroot -p% -h db\n",
    "{\"args\":[\"mysqldump\",\"-p%\"]}",
    "sshpass -p% ssh host\n",
    "/usr/bin/tool -p%\n",
    "imagePullSecrets:\n- name: x\n  data: %\n",
];

#[test]
fn a_secret_of_every_kind_is_taken_out_and_what_stands_before_it_is_not() {
    for plant in PLANTS {
        let redactor = Redactor::default();
        let text = plant.replace('%', "hunter2Hunter2");
        let clean = redactor.clean(&text);
        assert!(!clean.contains("hunter2"), "{text:?} became {clean:?}");
        assert!(redactor.count() > 0, "{text:?}");
        assert_eq!(
            text.matches('\n').count(),
            clean.matches('\n').count(),
            "{text:?} became {clean:?}"
        );
    }
}

#[test]
fn tokens_give_themselves_away() {
    for token in [
        "ghp_0123456789abcdefghijABCDEFGHIJ012345",
        "glpat-0123456789abcdefghij",
        "AKIA0123456789ABCDEF",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    ] {
        assert_eq!(
            clean(&format!("saw {token}.")).replace('.', ""),
            format!("saw {MASK}"),
            "{token}"
        );
    }
}

#[test]
fn what_is_no_secret_stays() {
    for text in [
        "[hypervisor.qemu]\npath = \"/usr/bin/qemu\"\nkernel_params = \"quiet a=b\"\nenable_annotations = []\n",
        "{\"level\":\"info\",\"msg\":\"the guest is up\",\"memory\":268435456}\n",
        "PWD=/root\nOLDPWD=/\nPATH=/bin:/sbin\n",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        "use_token = false\npassword = \"\"\nauth: null\n",
        "tls_key_file = \"/etc/tls/key.pem\"\n",
        "runtime_type = \"io.containerd.kata.v2\"\nhttps://example.org/a:b\n",
        "ctr task exec --user 1000:1000 x\n",
        "docker run -p8080:80 x; mkdir -p /a; ps -p1234; sshd -p22; qemu -pidfile /p; x -pidfile=/p; ls -prt\n",
        "the author's passage: keyboards and compasses\n",
    ] {
        assert_eq!(clean(text), text);
    }
}

#[test]
fn what_follows_a_secret_is_still_there() {
    let text = "time=\"now\" password=\"a b\" msg=hello\nkernel = \"/k\"\n";
    assert_eq!(
        clean(text),
        format!("time=\"now\" password=\"{MASK}\" msg=hello\nkernel = \"/k\"\n")
    );
    let text = "{\"password\":\"a\\\"b\",\"kernel\":\"k\"}";
    assert_eq!(clean(text), format!("{{\"password\":\"{MASK}\",\"kernel\":\"k\"}}"));
    let text = "password: |\n  a\n  b\nkernel: k\n";
    assert!(clean(text).ends_with("\nkernel: k\n"), "{}", clean(text));
    assert_eq!(
        clean("proxy = \"http://me:p@ss@proxy:3128/\"\n"),
        format!("proxy = \"http://{MASK}@proxy:3128/\"\n")
    );
}

#[test]
fn they_are_counted_and_a_clean_text_stays_clean() {
    let redactor = Redactor::default();
    let once = redactor.clean("password=a\ntoken=b\nx=http://u:p@h/\n");
    assert_eq!(redactor.count(), 3);
    assert_eq!(redactor.clean(&once), once);
    assert_eq!(redactor.count(), 3);
}

proptest! {
    #[test]
    fn no_planted_secret_ever_comes_out(
        which in 0..PLANTS.len(),
        secret in "Zq[A-Za-z0-9+/]{6,24}={0,2}",
        before in "([a-z]{1,6} ?[=:]? ?[a-z0-9]{0,6}\n){0,3}",
        after in "(\n[a-z]{1,6}.{0,12}){0,3}",
    ) {
        let text = format!("{before}{}{after}", PLANTS[which].replace('%', &secret));
        let clean = clean(&text);
        prop_assert!(!clean.contains(secret.trim_end_matches('=')), "{text:?} became {clean:?}");
    }

    #[test]
    fn a_quoted_secret_may_have_any_characters(secret in "Zq[ -~]{4,20}", kind in 0..3) {
        let escaped = serde_json::to_string(&secret).unwrap();
        let text = match kind {
            0 => format!("{{\"password\": {escaped}, \"k\": 1}}"),
            1 => format!("{{\"password\":{escaped}}}"),
            _ => format!("password = {escaped}\n"),
        };
        let inside = &escaped[1..escaped.len() - 1];
        let clean = clean(&text);
        prop_assert!(!clean.contains(inside), "{text:?} became {clean:?}");
    }

    #[test]
    fn any_text_is_survived_and_keeps_its_lines(text in "(password|token|auth|\"|'|=|:|\\{|\\[|\\||\n| |-|\\\\|\\PC){0,80}") {
        let clean = clean(&text);
        prop_assert_eq!(text.matches('\n').count(), clean.matches('\n').count());
    }
}
