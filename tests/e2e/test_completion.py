"""The completion scripts as a shell uses them: bash itself completes, zsh reads."""

import shutil
import subprocess
import unittest

import e2e


def complete(*words):
    """What bash offers after these words, the last of which is being written."""
    script = """
        source <("$0" completion bash) || exit 9
        COMP_WORDS=("$@")
        COMP_CWORD=$(($# - 1))
        complete -p atelier >/dev/null || exit 8
        _atelier
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    result = subprocess.run(["bash", "-euc", script, e2e.PROGRAM, *words], capture_output=True,
                            text=True, timeout=60)
    if result.returncode != 0 or result.stderr:
        raise AssertionError(result)
    return [line.strip() for line in result.stdout.splitlines() if line.strip()]


def options(command):
    """The options that the command's own help has."""
    text = subprocess.run([e2e.PROGRAM, *command.split(), "--help"], capture_output=True, text=True,
                          timeout=60, check=True).stdout
    return {line.split()[0] for line in text.splitlines() if line.startswith("  --")}


def commands():
    text = subprocess.run([e2e.PROGRAM, "help"], capture_output=True, text=True, timeout=60,
                          check=True).stdout
    return {line.split()[0] for line in text.splitlines() if line.startswith("  ")}


class Bash(unittest.TestCase):
    def test_commands(self):
        self.assertEqual(set(complete("atelier", "")), commands())
        self.assertEqual(complete("atelier", "gen"), ["generate"])
        self.assertEqual(complete("atelier", "ru"), ["run"])
        self.assertEqual(complete("atelier", "xyz"), [])
        if "submit" in commands():
            self.assertEqual(complete("atelier", "su"), ["submit"])

    def test_options_are_those_of_the_help(self):
        taking = commands() - {"schema", "version", "help", "completion", "bench", "model"}
        for command in taking:
            offered = set(complete("atelier", command, "--"))
            self.assertEqual(offered - {"--help"}, options(command), command)
        self.assertIn("--json", complete("atelier", "run", "--js"))
        self.assertEqual(complete("atelier", "run", "jobs.jsonl", "--batch"), ["--batch-max"])

    def test_values(self):
        self.assertEqual(complete("atelier", "run", "--device", ""), ["auto", "cpu", "cuda", "dnnl", "ref"])
        self.assertEqual(complete("atelier", "run", "--precision", "b"), ["bf16"])
        self.assertEqual(complete("atelier", "run", "--threads", ""), [])

    def test_words(self):
        self.assertEqual(complete("atelier", "schema", ""), ["job"])
        self.assertEqual(complete("atelier", "model", "insp"), ["inspect"])
        self.assertEqual(complete("atelier", "completion", ""), ["bash", "zsh"])

    def test_files_are_left_to_the_shell(self):
        self.assertEqual(complete("atelier", "run", ""), [])
        self.assertEqual(complete("atelier", "run", "--out", ""), [])


class Zsh(unittest.TestCase):
    def setUp(self):
        self.text = subprocess.run([e2e.PROGRAM, "completion", "zsh"], capture_output=True,
                                   text=True, timeout=60, check=True).stdout

    def test_it_names_everything(self):
        self.assertTrue(self.text.startswith("#compdef atelier\n"))
        for command in commands():
            self.assertIn(f"    {command})\n", self.text)
        self.assertIn("'--isa[highest instruction set to use]:NAME:(auto generic avx2 avx512 avx512_bf16 amx_bf16)'",
                      self.text)
        self.assertIn(":NAME:(auto cpu cuda dnnl ref)'", self.text)  # cuda:N has to be filled in

    @unittest.skipUnless(shutil.which("zsh"), "no zsh here")
    def test_zsh_reads_it(self):
        result = subprocess.run(["zsh", "-fc", "autoload -U compinit && compinit -D && "
                                 "source /dev/stdin && whence -w _atelier"], input=self.text,
                                capture_output=True, text=True, timeout=60)
        self.assertEqual((result.returncode, result.stdout, result.stderr),
                         (0, "_atelier: function\n", ""))


class Usage(unittest.TestCase):
    def test_another_shell(self):
        result = subprocess.run([e2e.PROGRAM, "completion", "fish"], capture_output=True, text=True,
                                timeout=60)
        self.assertEqual(result.returncode, 2)
        self.assertIn("bash|zsh", result.stderr)


if __name__ == "__main__":
    unittest.main()
