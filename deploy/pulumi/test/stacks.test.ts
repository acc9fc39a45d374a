// The two committed stacks, through the program as Pulumi starts it.

import assert from "node:assert/strict";
import * as fs from "node:fs";
import test from "node:test";

import * as pulumi from "@pulumi/pulumi";

import { readSettings } from "../config";
import { Created, mock, value } from "./harness";

/** The flat part of YAML that the stacks' files are written in. */
function stackConfig(stack: string): Record<string, string> {
    const lines = fs.readFileSync(`Pulumi.${stack}.yaml`, "utf8").split("\n");
    const pairs = lines.flatMap((line) => {
        const pair = /^  ([a-z-]+:\w+): (.+)$/.exec(line);
        assert.ok(pair !== null || /^(config:|  #.*|#.*|)$/.test(line), `Pulumi.${stack}.yaml: ${line}`);
        return pair === null ? [] : [[pair[1] as string, (pair[2] as string).replace(/^"(.*)"$/, "$1")]];
    });
    return Object.fromEntries(pairs);
}

test("the project has the name that its configuration keys begin with", () => {
    assert.match(fs.readFileSync("Pulumi.yaml", "utf8"), /^name: sqlite-backup-restore$/m);
});

test("an example's organisation must be replaced first", () => {
    for (const stack of ["dev", "prod"]) {
        assert.throws(() => readSettings(stack, stackConfig(stack)), /still holds the example's value/);
    }
});

const STACKS = [
    { stack: "dev", region: "us-west-2", providers: 1 },
    { stack: "prod", region: "us-east-1", providers: 0 },
];

for (const { stack, region, providers } of STACKS) {
    test(`${stack}: its region, its bucket, its outputs`, async () => {
        const config: Record<string, string> = { ...stackConfig(stack), "sqlite-backup-restore:flyOrgSlug": "my-org" };
        assert.equal(config["aws:region"], region);
        pulumi.runtime.setAllConfig(config);
        const resources: Created[] = [];
        await mock(stack, resources);

        delete require.cache[require.resolve("../index")];
        const program = require("../index");
        assert.equal(await value(program.bucketName), `6-disc-changer-${stack}-sqlite-backups`);
        assert.equal(
            await value(program.backupRestoreRoleArn),
            `arn:mock:Role/six-disc-changer-backup-restore-${stack}`,
        );
        await pulumi.runtime.disconnect();
        const made = resources.filter(({ type }) => type.endsWith(":OpenIdConnectProvider"));
        assert.equal(made.length, providers, "one provider for each issuer and account");
    });
}
