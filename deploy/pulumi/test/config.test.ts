import assert from "node:assert/strict";
import test from "node:test";

import { ConfigError, readSettings } from "../config";
import { config, settings } from "./harness";

/** The one problem that a key with this value causes. */
function problem(key: string, value: string, environment = "dev"): string {
    try {
        settings(environment, { [key]: value });
    } catch (error) {
        assert.ok(error instanceof ConfigError);
        assert.equal(error.problems.length, 1, error.message);
        return error.problems[0] as string;
    }
    throw new Error(`${key}=${value} was accepted`);
}

test("the defaults are the documented ones", () => {
    assert.deepEqual(settings("dev", { region: "us-west-2" }), {
        environment: "dev",
        region: "us-west-2",
        bucketName: "6-disc-changer-dev-sqlite-backups",
        prefix: "",
        flyAppName: "my-app",
        flyOrgSlug: "my-org",
        createFlyOidcProvider: true,
        appendOnlyRole: false,
        drillFlyAppName: undefined,
        permissionsBoundary: false,
        noncurrentDays: 7,
        accessLogging: false,
        requestMetrics: true,
        replicaRegion: undefined,
        alarmHours: 26,
        databaseName: "app",
        alarmEmail: undefined,
        protect: false,
    });
    assert.equal(settings("prod").protect, true);
    assert.equal(settings("prod").bucketName, "6-disc-changer-prod-sqlite-backups");
});

test("what is required is asked for, all at once", () => {
    assert.throws(() => readSettings("dev", {}), (error: ConfigError) => {
        assert.deepEqual(error.problems, [
            "aws:region: is missing: pulumi config set aws:region ...",
            "sqlite-backup-restore:flyAppName: is missing: pulumi config set sqlite-backup-restore:flyAppName ...",
            "sqlite-backup-restore:flyOrgSlug: is missing: pulumi config set sqlite-backup-restore:flyOrgSlug ...",
        ]);
        assert.match(error.message, /cannot be used:\n  aws:region: is missing/);
        return true;
    });
});

test("the alias of a personal organisation is refused, with the reason", () => {
    const said = problem("flyOrgSlug", "personal");
    assert.match(said, /an alias: fly\.io signs tokens with the organisation's real slug/);
    assert.match(said, /lifeboat doctor/);
});

const REFUSED: [key: string, values: string[], because: RegExp][] = [
    ["region", ["", "auto", "us-east", "US-EAST-1", "us-east-1a"], /is not a region of AWS/],
    [
        "backupBucketName",
        ["", "ab", "a".repeat(64), "My-Bucket", "my_bucket", "-bucket", "bucket-", "a..b", "192.168.0.1", "s3://bucket", "bucket/x", "b*"],
        /is not a bucket's name/,
    ],
    ["backupBucketName", ["xn--bucket", "sthree-x", "amzn-s3-demo-x", "x-s3alias", "x--ol-s3", "x.mrap", "x--x-s3"], /for itself/],
    ["flyOrgSlug", ["", "My Org", "my_org", "https://oidc.fly.io/my-org", "*", "my-org:app", "-org"], /is not the slug/],
    ["flyOrgSlug", ["your-fly-org"], /still holds the example's value/],
    ["flyAppName", ["", "*", "my-*", "my_app", "My-App", "my-app:machine", "my-app?"], /is not an application's name/],
    ["drillFlyAppName", ["*", "my-*", "My-Drill"], /is not an application's name/],
    ["s3Prefix", ["a//b", "a/*", "a?", "${aws:username}", "a b", "a/" + "b".repeat(512)], /cannot stand in a policy/],
    ["databaseName", ["", ".app", "App", "a/b", "a".repeat(65), "*"], /is not a database's name/],
    ["noncurrentDays", ["", "0", "-1", "1.5", "seven", "3651", "1e3", " 7"], /not a whole number from 1 to 3650/],
    ["alarmHours", ["", "-1", "169", "2.5", "a day"], /not a whole number from 0 to 168/],
    ["replicaRegion", ["auto", "europe"], /is not a region of AWS/],
    ["alarmEmail", ["ops", "ops@host", "a b@host.org"], /is not an address/],
    ["createFlyOidcProvider", ["", "yes", "1", "True"], /is neither true nor false/],
    ["appendOnlyRole", ["no"], /is neither true nor false/],
    ["permissionsBoundary", ["on"], /is neither true nor false/],
    ["accessLogging", ["off"], /is neither true nor false/],
    ["requestMetrics", ["0"], /is neither true nor false/],
];

for (const [key, values, because] of REFUSED) {
    test(`a bad ${key} is refused: ${because.source}`, () => {
        for (const value of values) {
            const said = problem(key, value);
            assert.match(said, because);
            assert.ok(said.startsWith(key === "region" ? "aws:region: " : `sqlite-backup-restore:${key}: `), said);
        }
    });
}

test("a stack's name ends up in names, so not every one will do", () => {
    for (const name of ["", "Dev", "dev_1", "1dev", "d".repeat(21), "org/dev"]) {
        assert.throws(() => settings(name, { backupBucketName: "my-bucket" }), /stack: .* cannot be part of names/, name);
    }
});

test("a key that does not exist is an error, not silence", () => {
    const said = problem("flyOrgSlugg", "x");
    assert.match(said, /^sqlite-backup-restore:flyOrgSlugg: there is no such key; there are backupBucketName, /);
    // Another project's keys, and the provider's, are none of ours.
    assert.doesNotThrow(() => readSettings("dev", { ...config(), "aws:profile": "x", "other:key": "x" }));
});

test("values that contradict each other are refused", () => {
    assert.match(problem("replicaRegion", "us-east-1"), /is the region of the bucket itself/);
    assert.match(problem("drillFlyAppName", "my-app"), /is the application itself/);
    const quiet = { alarmHours: "0", alarmEmail: "ops@example.org" };
    assert.throws(() => settings("dev", quiet), /alarmEmail: there is no alarm to send/);
    const long = { backupBucketName: "b".repeat(60) };
    assert.doesNotThrow(() => settings("dev", long));
    assert.throws(() => settings("dev", { ...long, replicaRegion: "eu-west-1" }), /with -replica behind it/);
    assert.throws(() => settings("dev", { ...long, accessLogging: "true" }), /with -logs behind it/);
});

test("a prefix ends in one slash, however it was written", () => {
    for (const text of ["six/prod", "/six/prod", "six/prod/", "//six/prod//"]) {
        assert.equal(settings("dev", { s3Prefix: text }).prefix, "six/prod/");
    }
    assert.equal(settings("dev", { s3Prefix: "/" }).prefix, "");
});
