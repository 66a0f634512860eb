# lib.sh: what the scripts of this folder share; sourced, never run. Needs bash and coreutils only.
#
# Every script runs from the source root. Packages are asked for by name and installed only when
# missing; sudo is used for apt alone. Builds go to build/<preset>.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
script="$(basename "$0")"

BUILD_PACKAGES=(gcc libc6-dev cmake ninja-build libdnnl-dev libspng-dev libjpeg-dev libwebp-dev
    librdkafka-dev libhiredis-dev libmicrohttpd-dev
    libssl-dev libcurl4-openssl-dev)
TEST_PACKAGES=("${BUILD_PACKAGES[@]}" g++ libcmocka-dev python3 python3-venv default-jre-headless maven
    redis-server)
FUZZ_PACKAGES=(clang)
CONFIGURE_WITH=()

say()
{
    echo "$script: $*" >&2
}

die()
{
    say "$*"
    exit 1
}

# Those of the packages that are not installed; virtual names count when a provider is.
missing_packages()
{
    local installed package
    installed="$(dpkg-query -W -f '${db:Status-Status} ${Package} ${Provides}\n' |
        sed -n 's/^installed //p' | tr ', ' '\n\n' | sort -u)"
    for package in "$@"; do
        grep -qxF -- "$package" <<<"$installed" || echo "$package"
    done
}

install_packages()
{
    local missing as_root=()
    command -v dpkg-query >/dev/null || die "this is no Debian; install yourself: $*"
    mapfile -t missing < <(missing_packages "$@")
    if ((${#missing[@]} == 0)); then
        return
    fi
    if ((EUID != 0)); then
        command -v sudo >/dev/null || die "as root, run: apt-get install ${missing[*]}"
        say "sudo is used for apt-get alone, to install: ${missing[*]}"
        as_root=(sudo)
    fi
    say "installing ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
}

# How many compilers at once: CMAKE_BUILD_PARALLEL_LEVEL, else one per core.
compilers()
{
    echo "${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"
}

# build_preset NAME [TARGET]: configures, with CONFIGURE_WITH's words, and builds into build/NAME. Only a
# new build is configured for a target alone, and then without the tests, which need more packages than
# the programs.
build_preset()
{
    local preset="$1" target="${2:-all}" dir="build/$1" configure
    configure=(cmake --preset "$preset" "${CONFIGURE_WITH[@]}")
    if [[ $target != all ]]; then
        configure+=(-DATELIER_TESTS=OFF)
    fi
    if [[ -f $dir/CMakeCache.txt ]]; then
        [[ $target == all ]] || configure=(true)
    elif command -v ninja >/dev/null; then
        export CMAKE_GENERATOR="${CMAKE_GENERATOR:-Ninja}"
    fi
    say "building $preset"
    mkdir -p "$dir"
    if ! { "${configure[@]}" &&
        cmake --build "$dir" --target "$target" --parallel "$(compilers)"; } >"$dir/build.log" 2>&1; then
        tail -n 60 "$dir/build.log" >&2
        die "building $preset failed; all of it is in $dir/build.log"
    fi
}

# Preset cuda for the kind of card that this machine has, and for all where nvidia-smi does not say.
# What another compiler warns of must not keep a card from being tried.
build_for_this_card()
{
    local capability
    capability="$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 || true)"
    case "$capability" in
    8.0) export CUDAARCHS=80-real ;;
    8.*) export CUDAARCHS=86-real ;;
    9.0) export CUDAARCHS=90a-real ;;
    esac
    command -v nvcc >/dev/null || export PATH="$PATH:/usr/local/cuda/bin"
    local CONFIGURE_WITH=(-DATELIER_WERROR=OFF)
    # A build that another kind of card configured keeps that card's.
    [[ -z ${CUDAARCHS:-} ]] || CONFIGURE_WITH+=("-DCMAKE_CUDA_ARCHITECTURES=$CUDAARCHS")
    build_preset cuda
}

# Whether clang is there with libFuzzer and its sanitizers.
has_fuzzer()
{
    command -v clang >/dev/null &&
        [[ -n $(compgen -G "$(clang -print-resource-dir)/lib/*/libclang_rt.fuzzer*") ]]
}

# The package of this Debian that holds libFuzzer: that of clang's default version.
fuzzer_runtime()
{
    apt-cache depends clang | sed -n 's/^ *Depends: clang-\([0-9]*\)$/libclang-rt-\1-dev/p'
}
