# bench beside the vLLM it starts; the version is the study's.
FROM vllm/vllm-openai:v0.20.2

# In an environment of its own, from the lock: vLLM keeps the versions it came with.
COPY . /opt/bench
RUN python3 -m venv --without-pip /opt/bench/.venv \
    && python3 -m pip --python /opt/bench/.venv/bin/python install --no-cache-dir --require-hashes \
        -r /opt/bench/locks/run.txt \
    && python3 -m pip --python /opt/bench/.venv/bin/python install --no-cache-dir --no-deps /opt/bench \
    && ln -s /opt/bench/.venv/bin/bench /usr/local/bin/bench \
    && useradd --create-home --uid 1001 bench

USER 1001
WORKDIR /home/bench
ENTRYPOINT ["bench"]
CMD ["--help"]
