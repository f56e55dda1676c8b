-- For Postgres, whose schemas can be renamed and their tables moved: nothing here names one.
SELECT 1;
